"""List what can be named in a recipe, and the commands.

Examples:
  perceptune list methods
  perceptune list metrics --json
"""

from perceptune.cli.output import print_found
from perceptune.cli.parsing import Namespace, Parser
from perceptune.tools.list_components import entries, kinds


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("kind", choices=kinds(), help="what to list")
    parser.add_json()


def run(options: Namespace) -> None:
    """Print names and descriptions."""
    found = entries(options.kind)
    print_found(found, (f"{one['name']:<22} {one['description']}" for one in found), as_json=options.json)
