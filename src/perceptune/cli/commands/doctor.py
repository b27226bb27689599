"""Check this machine and what a recipe requires of it.

Examples:
  perceptune doctor
  perceptune doctor paper/epalm
  perceptune doctor --gpu
"""

import argparse
from pathlib import Path

from perceptune.cli.output import out, print_json
from perceptune.cli.parsing import Parser
from perceptune.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("recipe", nargs="?", help="a recipe whose files and models are checked, too")
    parser.add_json()
    parser.add_argument("--gpu", action="store_true", help="compare the GPU with the CPU on tiny models (minutes)")
    parser.add_argument("--out", default="perceptune-gpu.json", metavar="FILE",
                        help="report of --gpu (default: %(default)s)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Print what was found; return 1 if there is a problem."""
    from perceptune.tools.doctor import examine

    if options.gpu:
        return _check_gpu(options)
    checks = examine(options.recipe)
    if options.json:
        print_json(checks)
    else:
        for check in checks:
            mark = {"ok": "ok  ", "note": "note", "problem": "!!  "}[check["state"]]
            out.print(f"{mark} {check['name']:<14} {check['found']}")
    return 1 if any(check["state"] == "problem" for check in checks) else 0


def _check_gpu(options: argparse.Namespace) -> int:
    from perceptune.tools.gpu_check import check_gpu

    if options.recipe:
        raise UserError("doctor --gpu makes models of its own: leave the recipe out")
    checks = check_gpu(Path(options.out), say=(lambda _: None) if options.json else out.print)
    if options.json:
        print_json(checks)
    else:
        print(f"report: {options.out}")
    return 1 if any(check["state"] == "problem" for check in checks) else 0
