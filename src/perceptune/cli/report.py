"""`perceptune report`: one page of what was gathered."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_report(report: argparse.ArgumentParser) -> None:
    """The command's options."""
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders, and folders of `perceptune compare`")
    report.add_argument("--out", metavar="FILE.html", help="page to write (default: report.html in the first folder)")
    report.add_argument("--markdown", metavar="FILE.md", help="also write Markdown, without pictures")
    report.add_argument(
        "--samples",
        type=int,
        default=8,
        metavar="N",
        help="right and wrong answers to show of a run (default: %(default)s)",
    )
    report.add_argument("--no-media", action="store_true", help="show no pictures, frames or spectrograms")


def report(options: argparse.Namespace) -> int:
    """Gathers and writes."""
    from perceptune.errors import UserError
    from perceptune.models.run_folder import write_text
    from perceptune.models.run_location import is_address
    from perceptune.tools.report.gather import gather
    from perceptune.tools.report.html import html
    from perceptune.tools.report.markdown import markdown
    from perceptune.tools.report.sections import make_report

    if options.samples < 1:
        raise UserError(f"`--samples {options.samples}`: name at least 1")
    first = options.runs[0]
    if options.out is None and (is_address(first) or not Path(first).is_dir()):
        gather(options.runs[:1])  # says what is wrong with it, if anything
        raise UserError(f"`{first}` is no folder to write into: name a file by --out")
    runs, comparisons = gather(options.runs)
    made = make_report(runs, comparisons, samples=options.samples, media=not options.no_media)
    out = Path(options.out) if options.out else Path(first) / "report.html"
    for path, text in ((out, html(made)), (options.markdown, markdown(made) if options.markdown else "")):
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # Half of a surrogate pair in an answer must not cost the page.
            write_text(Path(path), text.encode(errors="replace").decode())
            print(path)
    return 0
