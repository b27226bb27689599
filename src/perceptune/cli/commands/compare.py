"""Compare methods, seeds and settings on equal terms, as a table and a plot.

Examples:
  perceptune compare small --methods epalm,limber,lora --seeds 0,1,2 task.train=my.jsonl
  perceptune compare small --methods epalm,lora --grid train.lr=1e-4,1e-3 --dry-run
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from perceptune.cli.output import print_json
from perceptune.cli.parsing import Namespace, Parser, split_words
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


def run(options: Namespace) -> None:
    """Plan, and run the plan."""
    from perceptune.tools.compare.plan import make_plan, parse_grid
    from perceptune.tools.compare.report import NAME, cells, terms
    from perceptune.tools.compare.run import outlook, plan_rows, run_plan
    from perceptune.tools.compare.timing import NAME as TIMING
    from perceptune.tools.compare.timing import time_plan, timing_cells, timing_terms

    say = Console(highlight=False, soft_wrap=True, quiet=not is_main_process() or options.json)
    plan = make_plan(
        options.recipes, options.overrides, methods=split_words(options.methods), seeds=_seeds(options.seeds),
        grid=parse_grid(options.grid) if options.grid else None,
    )  # fmt: skip
    out = Path(options.out or f"runs/compare-{Path(options.recipes[0]).stem}")
    if options.timing:
        result = time_plan(plan, out, say.print, rounds=options.rounds, samples=options.samples)
        told = [_table(timing_cells(result)), timing_terms(result), f"{out / TIMING}.md, .json"]
    elif options.dry_run:
        result = outlook(plan, out) | {"rows": [entry.label for entry in plan.entries]}
        told = [_table([("", "trained", "share"), *plan_rows(plan)]),
                "{runs} runs, {left} of them still to do: about {minutes:.1f} minutes".format(**result)]  # fmt: skip
        if plan.select_on:
            told.append(f"{len(plan.settings)} settings each, chosen on `{plan.select_on}`; tested on `{plan.test_on}`")
    else:
        say.print(f"{plan.runs} runs into {out}; the same command resumes after a stop")
        result = run_plan(plan, out, say.print)
        files = f"{out / NAME}.md, .csv, .json{', .png' if (out / f'{NAME}.png').is_file() else ''}"
        told = [_table(cells(result)), terms(result), files]
    if options.json:
        print_json(result)
    say.print("\n".join(told))


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
