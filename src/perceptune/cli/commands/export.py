"""Write a run, with everything needed to load it, as one zip file or as a folder for transformers.

Examples:
  perceptune export runs/mine mine.zip
  perceptune export runs/mine mine-hf --to transformers
"""

from pathlib import Path

from perceptune.cli.output import print_local_models
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("file", metavar="FILE.zip|FOLDER", help="file or folder to write")
    parser.add_argument(
        "--to", choices=("zip", "transformers"), default="zip",
        help="zip (default): for perceptune; transformers: a folder for AutoModelForImageTextToText and pipelines",
    )  # fmt: skip
    parser.add_trust()


def run(options: Namespace) -> None:
    """Write a zip file or a folder."""
    from perceptune.models.run_location import local_run
    from perceptune.tools.export.bundle import export as write

    run_folder, place = local_run(options.run), Path(options.file)
    if options.to == "transformers":
        from perceptune.tools.export.transformers_folder import export_transformers

        size = export_transformers(run_folder, place, trust=options.trust)
        print(f"{size:,} bytes: {place}\nnext:  `import perceptune`, then transformers loads it")
        return
    made = write(run_folder, place, trust=options.trust)
    print(f"{place.stat().st_size:,} bytes: {place}")
    print_local_models(made.local)
