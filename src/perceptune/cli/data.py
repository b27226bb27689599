"""`perceptune data`: check, convert, make up."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

MODALITIES = ("image", "audio", "video", "all")


def add_data(data: argparse.ArgumentParser) -> None:
    """The commands of the group, with their options."""
    group = data.add_subparsers(dest="what", required=True, metavar="check|convert|demo")

    check = group.add_parser("check", help="go through a data set and count every mistake")
    check.add_argument("source", metavar="FILE|RECIPE", help="a text file, one JSON object a line, or a recipe")
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys")
    check.add_argument("--split", help="split to check alone; for a FILE, the split that it is (default: train)")
    check.add_argument("--decode", action="store_true", help="decode media as training does instead of opening them")
    check.add_argument("--contents", action="store_true", help="also find media with the same bytes")
    check.add_argument("--no-tokens", action="store_true", help="count words only: load no tokenizer of a recipe")
    check.add_argument(
        "--first", type=int, default=5, metavar="N", help="mistakes to show of each kind (default: %(default)s)"
    )
    check.add_argument("--samples", type=int, metavar="N", help="rows to show (default: 3, on a page 24)")
    check.add_argument("--html", metavar="PAGE", help="also write a page with small pictures of some rows")
    check.add_argument("--json", action="store_true")

    convert = group.add_parser("convert", help="write any data set as a text file, one JSON object a line")
    convert.add_argument("source", metavar="SOURCE", help="a task's name, a recipe, or a text file")
    convert.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, such as task.train=FILE")
    convert.add_argument("--to", required=True, metavar="FILE", help="a file to be written; `.gz` compresses it")
    convert.add_argument("--split", help="split to write; needed if there are several")
    convert.add_argument(
        "--absolute", action="store_true", help="write absolute paths of media, not paths from the file"
    )
    convert.add_argument("--media", metavar="DIR", help="folder for media out of archives")

    demo = group.add_parser("demo", help="make up a small data set to learn from, with its recipe")
    demo.add_argument("folder", metavar="DIR")
    demo.add_argument("--modality", choices=MODALITIES, default="image", help="kind of media (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the data: the same one writes the same files")


def data(options: argparse.Namespace) -> int:
    """Runs one of the commands."""
    runs: dict[str, Any] = {"check": _check, "convert": _convert, "demo": _demo}
    code: int = runs[options.what](options)
    return code


def _check(options: argparse.Namespace) -> int:
    from perceptune.errors import UserError
    from perceptune.tools.datasets.format_report import format_report
    from perceptune.tools.datasets.page import page
    from perceptune.tools.datasets.validate import CheckOptions, check
    from perceptune.utils.atomic_io import write_whole

    for name in ("first", "samples"):
        if (getattr(options, name) or 0) < 0:
            raise UserError(f"`--{name}` is a number of rows: it cannot be {getattr(options, name)}")
    samples = options.samples if options.samples is not None else 24 if options.html else 3
    checked = check(
        options.source, options.overrides, split=options.split,
        options=CheckOptions(
            decode=options.decode, contents=options.contents, tokens=not options.no_tokens, shown=options.first,
            samples=samples,
        ),
    )  # fmt: skip
    if options.html:
        write_whole(Path(options.html), [page(checked).encode(errors="replace")])
    if options.json:
        print(json.dumps(checked.report, indent=2))
    else:
        print("\n".join(format_report(checked, samples if options.samples is not None else 3)))
    return 0 if checked.clean else 1


def _convert(options: argparse.Namespace) -> int:
    from perceptune.tools.datasets.convert import convert

    rows = convert(
        options.source, Path(options.to), options.overrides, split=options.split, absolute=options.absolute,
        media=None if options.media is None else Path(options.media),
    )  # fmt: skip
    print(f"{rows:,} rows: {options.to}\nnext:  perceptune data check {options.to}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from perceptune.tools.datasets.demo import write_demo

    recipe = write_demo(Path(options.folder), options.modality, seed=options.seed)
    print(f"next:  perceptune train {recipe}")
    return 0
