"""Check this machine and what a recipe requires of it.

Examples:
  perceptune doctor
  perceptune doctor paper/epalm
  perceptune doctor --gpu
"""

from pathlib import Path

from perceptune.cli.output import out, print_found
from perceptune.cli.parsing import Namespace, Parser
from perceptune.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("recipe", nargs="?", help="a recipe whose files and models are checked, too")
    parser.add_json()
    parser.add_argument("--gpu", action="store_true", help="compare the GPU with the CPU on tiny models (minutes)")
    parser.add_argument("--out", default="perceptune-gpu.json", metavar="FILE",
                        help="report of --gpu (default: %(default)s)")  # fmt: skip


def run(options: Namespace) -> int:
    """Print what was found; return 1 if there is a problem."""
    if options.gpu and options.recipe:
        raise UserError("doctor --gpu makes models of its own: leave the recipe out")
    if options.gpu:
        from perceptune.tools.gpu_check import check_gpu

        checks = check_gpu(Path(options.out), say=(lambda _: None) if options.json else out.print)
        lines = [f"report: {options.out}"]
    else:
        from perceptune.tools.doctor import examine

        checks = examine(options.recipe)
        marks = {"ok": "ok  ", "note": "note", "problem": "!!  "}
        lines = [f"{marks[check['state']]} {check['name']:<14} {check['found']}" for check in checks]
    print_found(checks, lines, as_json=options.json)
    return 1 if any(check["state"] == "problem" for check in checks) else 0
