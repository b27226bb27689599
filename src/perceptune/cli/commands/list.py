"""List what can be named in a recipe, and the commands.

Examples:
  perceptune list methods
  perceptune list metrics --json
"""

import argparse

from perceptune.cli.output import out, print_json
from perceptune.cli.parsing import Parser
from perceptune.tools.list_components import entries, kinds


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("kind", choices=kinds(), help="what to list")
    parser.add_json()


def run(options: argparse.Namespace) -> int:
    """Print names and descriptions."""
    found = entries(options.kind)
    if options.json:
        print_json(found)
        return 0
    for entry in found:
        out.print(f"{entry['name']:<22} {entry['description']}")
    return 0
