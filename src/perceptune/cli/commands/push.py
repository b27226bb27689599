"""Upload a run to the Hugging Face Hub.

Examples:
  perceptune push runs/mine me/my-run --private
"""

from perceptune.cli.output import print_local_models
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("name", metavar="USER/NAME", help="repository on the hub")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_trust()


def run(options: Namespace) -> None:
    """Upload the run."""
    from perceptune.models.run_location import local_run
    from perceptune.tools.export.hub import push as send

    address, local = send(local_run(options.run), options.name, private=options.private, trust=options.trust)
    print(f"{address}\nnext:  perceptune verify hf://{options.name}")
    print_local_models(local)
