"""Write a run, with everything needed to load it, as one zip file.

Examples:
  perceptune export runs/mine mine.zip
"""

from pathlib import Path

from perceptune.cli.output import print_local_models
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("file", metavar="FILE.zip", help="file to write")
    parser.add_trust()


def run(options: Namespace) -> None:
    """Write a zip file."""
    from perceptune.models.run_location import local_run
    from perceptune.tools.export.bundle import export as write

    made = write(local_run(options.run), Path(options.file), trust=options.trust)
    print(f"{Path(options.file).stat().st_size:,} bytes: {options.file}")
    print_local_models(made.local)
