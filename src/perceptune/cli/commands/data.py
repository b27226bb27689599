"""Validate, convert or synthesise a data set.

Examples:
  perceptune data check my-images
  perceptune data convert captions.csv --to captions.jsonl
  perceptune data demo demo-data --modality audio
"""

from pathlib import Path

from perceptune.cli.output import print_found
from perceptune.cli.parsing import Namespace, Parser, words_of

MODALITIES = ("image", "audio", "video", "all")


def add_arguments(parser: Parser) -> None:
    """Add the commands of the group."""
    group = parser.add_subparsers(required=True, metavar="check|convert|demo")
    for name, summary, add, execute in (
        ("check", "validate a data set and count every error", _add_check, _check),
        ("convert", "write a data set as a file with one JSON object per line", _add_convert, _convert),
        ("demo", "write a small synthetic data set with its recipe", _add_demo, _demo),
    ):
        part = group.add_parser(name, help=summary)
        part.set_defaults(part=execute)
        add(part)


def run(options: Namespace) -> int | None:
    """Run one of the commands."""
    return options.part(options)


def _add_check(check: Parser) -> None:
    check.add_argument("source", metavar="PATH|RECIPE", help="data in any form, or a recipe")
    check.add_overrides("recipe keys")
    check.add_argument("--task", help="a name of `perceptune list tasks` (default: recognised)")
    check.add_media()
    check.add_fetch_media()
    check.add_argument(
        "--split", help="split to check (default: all); of data, the split it is read as (default: train)"
    )
    check.add_argument("--decode", action="store_true", help="decode media as training does, instead of opening them")
    check.add_argument("--contents", action="store_true", help="find media with identical bytes, too")
    check.add_argument("--no-tokens", action="store_true", help="count words, without loading a recipe's tokenizer")
    check.add_argument("--first", type=int, default=5, metavar="N", help="errors per kind to show (default: 5)")
    check.add_argument("--samples", type=int, metavar="N", help="rows to show (default: 3, on a page 24)")
    check.add_argument("--html", metavar="PAGE", help="write a page with thumbnails of some rows, too")
    check.add_json()


def _add_convert(convert: Parser) -> None:
    convert.add_argument("source", metavar="SOURCE", help="data in any form, a recipe, or the name of a task")
    convert.add_overrides("recipe keys, such as task.media=DIR")
    convert.add_argument("--task", help="a name of `perceptune list tasks` (default: recognised)")
    convert.add_argument("--to", required=True, metavar="FILE", help="file to write; `.gz` compresses it")
    convert.add_argument("--split", help="split to write; required if there are several")
    convert.add_fetch_media()
    convert.add_argument("--absolute", action="store_true", help="write absolute media paths instead of relative ones")
    convert.add_argument("--media", metavar="DIR", help="folder for media extracted from archives")


def _add_demo(demo: Parser) -> None:
    demo.add_argument("folder", metavar="DIR", help="folder to write")
    demo.add_argument("--modality", choices=MODALITIES, default="image", help="media to make (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the data; the same seed writes the same files")


def _overrides(options: Namespace) -> list[str]:
    return [*options.overrides, *(["task.fetch_media=true"] if options.fetch_media else [])]


def _check(options: Namespace) -> int:
    from perceptune.errors import UserError
    from perceptune.tools.datasets.format_report import format_report
    from perceptune.tools.datasets.page import page
    from perceptune.tools.datasets.validate import CheckOptions, validate_dataset
    from perceptune.utils.atomic_io import write_whole

    for name in ("first", "samples"):
        if (getattr(options, name) or 0) < 0:
            raise UserError(f"`--{name}` is a number of rows: it cannot be {getattr(options, name)}")
    samples = options.samples if options.samples is not None else 24 if options.html else 3
    how = CheckOptions(options.decode, options.contents, not options.no_tokens, options.first, samples)
    checked = validate_dataset(options.source, words_of(options), split=options.split, options=how,
                               media=options.media, reader=options.task)  # fmt: skip
    if options.html:
        write_whole(Path(options.html), [page(checked).encode(errors="replace")])
    told = format_report(checked, samples if options.samples is not None else 3)
    print_found(checked.report, told, as_json=options.json)
    return 0 if checked.clean else 1


def _convert(options: Namespace) -> None:
    from perceptune.tools.datasets.convert import convert

    rows = convert(
        options.source, Path(options.to), words_of(options), split=options.split, absolute=options.absolute,
        reader=options.task,
        media=None if options.media is None else Path(options.media),
    )  # fmt: skip
    print(f"{rows:,} rows: {options.to}\nnext:  perceptune data check {options.to}")


def _demo(options: Namespace) -> None:
    from perceptune.tools.datasets.demo import write_demo

    recipe = write_demo(Path(options.folder), options.modality, seed=options.seed)
    print(f"next:  perceptune train {recipe}")
