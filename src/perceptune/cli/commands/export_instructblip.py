"""Write a trained InstructBLIP as a Hugging Face folder.

Examples:
  perceptune export-instructblip runs/mine models/mine
"""

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("folder", help="Hugging Face model folder to write")
    parser.add_trust()


def run(options: Namespace) -> None:
    """Write the folder."""
    from perceptune.models.instructblip.create import export_instructblip

    out.print(f"written: {export_instructblip(options.run, options.folder, trust=options.trust)}")
