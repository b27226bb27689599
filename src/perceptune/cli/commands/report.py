"""Write one page about a run, several runs, or a comparison.

Examples:
  perceptune report runs/mine
  perceptune report runs/mine runs/other --out both.html --markdown both.md
"""

from pathlib import Path

from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs and of `perceptune compare`")
    parser.add_argument("--out", metavar="FILE.html", help="page to write (default: report.html in the first folder)")
    parser.add_argument("--markdown", metavar="FILE.md", help="write Markdown without images, too")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="answers to show per run (default: 8)")
    parser.add_argument("--no-media", action="store_true", help="leave out images, frames and spectrograms")


def run(options: Namespace) -> None:
    """Write the page."""
    from perceptune.errors import UserError
    from perceptune.models.run_location import is_address
    from perceptune.tools.report.gather import gather
    from perceptune.tools.report.html import html
    from perceptune.tools.report.markdown import markdown
    from perceptune.tools.report.sections import make_report
    from perceptune.utils.atomic_io import write_text

    if options.samples < 1:
        raise UserError(f"`--samples {options.samples}`: name at least 1")
    first = options.runs[0]
    if options.out is None and (is_address(first) or not Path(first).is_dir()):
        gather(options.runs[:1])  # raises if the run is unusable
        raise UserError(f"`{first}` is not a folder to write into: name a file by --out")
    runs, comparisons = gather(options.runs)
    made = make_report(runs, comparisons, samples=options.samples, media=not options.no_media)
    out = Path(options.out) if options.out else Path(first) / "report.html"
    for path, text_of in ((out, html), (options.markdown, markdown)):
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # An unpaired surrogate in an answer must not prevent the page.
            write_text(Path(path), text_of(made).encode(errors="replace").decode())
            print(path)
