"""Write a run as one zip file, or as a folder for transformers.

Examples:
  perceptune export runs/mine mine.zip
  perceptune export runs/mine mine-hf --to transformers
  perceptune export runs/mine mine-llava --to llava
"""

from pathlib import Path

from perceptune.cli.output import print_local_models
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("file", metavar="FILE.zip|FOLDER", help="file or folder to write")
    parser.add_argument(
        "--to", choices=("zip", "transformers", "llava"), default="zip",
        help="zip (default): for perceptune; transformers: a folder for its auto classes and pipelines where "
        "perceptune is installed; llava: a whole checkpoint in LLaVA's layout, for transformers alone",
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
    if options.to == "llava":
        from perceptune.tools.export.llava.folder import export_llava

        size = export_llava(run_folder, place, trust=options.trust)
        print(f"{size:,} bytes: {place}\nnext:  AutoModelForImageTextToText and AutoProcessor of transformers load it")
        return
    made = write(run_folder, place, trust=options.trust)
    print(f"{place.stat().st_size:,} bytes: {place}")
    print_local_models(made.local)
