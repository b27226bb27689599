"""`perceptune compare`: what is to be run, then the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from perceptune.errors import UserError
from perceptune.utils.run_log import is_main_process


def compare(options: argparse.Namespace) -> int:
    """Plans, and runs the plan unless it is asked for alone."""
    from perceptune.tools.compare.plan import make_plan, parse_grid
    from perceptune.tools.compare.report import NAME, cells, terms
    from perceptune.tools.compare.run import outlook, plan_rows, run_plan

    say = Console(highlight=False, soft_wrap=True, quiet=not is_main_process() or options.json)
    plan = make_plan(
        options.recipes, options.overrides, methods=_words(options.methods), seeds=_seeds(options.seeds),
        grid=parse_grid(options.grid) if options.grid else None,
    )  # fmt: skip
    out = Path(options.out or f"runs/compare-{Path(options.recipes[0]).stem}")
    if options.timing:
        return _timing(options, plan, out, say)
    if options.dry_run:
        found = outlook(plan, out)
        if options.json:
            print(json.dumps(found | {"rows": [entry.label for entry in plan.entries]}, indent=2))
            return 0
        say.print(_table([("", "trained", "share"), *plan_rows(plan)]))
        say.print(f"{found['runs']} runs, {found['left']} of them still to do: about {found['minutes']:.1f} minutes")
        if plan.select_on:
            say.print(f"{len(plan.settings)} settings each, chosen on `{plan.select_on}`; tested on `{plan.test_on}`")
        return 0
    say.print(f"{plan.runs} runs into {out}; the same command goes on after a stop")
    result = run_plan(plan, out, say.print)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    say.print(_table(cells(result)))
    say.print(terms(result))
    say.print(f"{out / NAME}.md, .csv, .json, .png")
    return 0


def _timing(options: argparse.Namespace, plan: Any, out: Path, say: Console) -> int:
    from perceptune.tools.compare.timing import NAME, time_plan, timing_cells, timing_terms

    result = time_plan(plan, out, say.print, rounds=options.rounds, samples=options.samples)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    say.print(_table(timing_cells(result)))
    say.print(timing_terms(result))
    say.print(f"{out / NAME}.md, .json")
    return 0


def _words(text: str | None) -> list[str]:
    return [word for word in (text or "").split(",") if word]


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise UserError(f"`--seeds {text}`: seeds are whole numbers, such as 0,1,2") from None


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned lines, however narrow the terminal is: figures that are cut off are none."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        aligned = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)
