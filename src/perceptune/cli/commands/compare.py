"""Compare methods, seeds and settings on equal terms, as a table and a plot.

Examples:
  perceptune compare small --methods epalm,limber,lora --seeds 0,1,2 task.train=my.jsonl
  perceptune compare small --methods epalm,lora --grid train.lr=1e-4,1e-3 --dry-run
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from perceptune.cli.output import print_json
from perceptune.cli.parsing import Parser, split_words
from perceptune.errors import UserError
from perceptune.utils.run_log import is_main_process


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="one or several recipes with equal budgets")
    parser.add_overrides("recipe keys for every run", beside="recipes")
    parser.add_argument("--methods", metavar="A,B", help="methods (default: `compare.methods`, or the recipe's)")
    parser.add_argument("--seeds", metavar="0,1,2", help="seeds per method (default: `compare.seeds`)")
    parser.add_argument("--grid", action="append", metavar="KEY=V,V", help="values to select from; K+K=V,V joins keys")
    parser.add_argument("--out", help="folder of the results (default: runs/compare-RECIPE)")
    parser.add_argument("--dry-run", action="store_true", help="print the planned runs and their estimated time")
    parser.add_argument("--timing", action="store_true", help="measure the cost of a training step instead of training")
    parser.add_argument("--rounds", type=int, default=5, help="with --timing: rounds of measuring (default: 5)")
    parser.add_argument("--samples", type=int, help="with --timing: samples to time (default: 4 steps)")
    parser.add_json()


def run(options: argparse.Namespace) -> int:
    """Plan, and run the plan."""
    from perceptune.tools.compare.plan import make_plan, parse_grid
    from perceptune.tools.compare.report import NAME, cells, terms
    from perceptune.tools.compare.run import outlook, plan_rows, run_plan

    say = Console(highlight=False, soft_wrap=True, quiet=not is_main_process() or options.json)
    plan = make_plan(
        options.recipes, options.overrides, methods=split_words(options.methods), seeds=_seeds(options.seeds),
        grid=parse_grid(options.grid) if options.grid else None,
    )  # fmt: skip
    out = Path(options.out or f"runs/compare-{Path(options.recipes[0]).stem}")
    if options.timing:
        return _timing(options, plan, out, say)
    if options.dry_run:
        found = outlook(plan, out)
        if options.json:
            print_json(found | {"rows": [entry.label for entry in plan.entries]})
            return 0
        say.print(_table([("", "trained", "share"), *plan_rows(plan)]))
        say.print(f"{found['runs']} runs, {found['left']} of them still to do: about {found['minutes']:.1f} minutes")
        if plan.select_on:
            say.print(f"{len(plan.settings)} settings each, chosen on `{plan.select_on}`; tested on `{plan.test_on}`")
        return 0
    say.print(f"{plan.runs} runs into {out}; the same command resumes after a stop")
    result = run_plan(plan, out, say.print)
    if options.json:
        print_json(result)
        return 0
    say.print(_table(cells(result)))
    say.print(terms(result))
    say.print(f"{out / NAME}.md, .csv, .json{', .png' if (out / f'{NAME}.png').is_file() else ''}")
    return 0


def _timing(options: argparse.Namespace, plan: Any, out: Path, say: Console) -> int:
    from perceptune.tools.compare.timing import NAME, time_plan, timing_cells, timing_terms

    result = time_plan(plan, out, say.print, rounds=options.rounds, samples=options.samples)
    if options.json:
        print_json(result)
        return 0
    say.print(_table(timing_cells(result)))
    say.print(timing_terms(result))
    say.print(f"{out / NAME}.md, .json")
    return 0


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(word) for word in split_words(text)]
    except ValueError:
        raise UserError(f"`--seeds {text}`: seeds are whole numbers, such as 0,1,2") from None


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return aligned lines whatever the terminal's width: truncated figures would be useless."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        aligned = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)
