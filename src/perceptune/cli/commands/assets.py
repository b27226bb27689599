"""Fetch the default models and data sets.

Examples:
  perceptune assets --list
  perceptune assets
"""

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="assets to fetch (default: all)")
    parser.add_argument("--list", action="store_true", help="list the assets and where each is stored")


def run(options: Namespace) -> None:
    """Fetch assets, or list them."""
    from perceptune.utils.downloads import ASSETS, fetch, present

    if options.list:
        for name, asset in ASSETS.items():
            out.print(f"{name:<24} {asset.what}\n{'':<24} {present(name) or 'not fetched'}")
        return
    for name, path in fetch(options.names or tuple(ASSETS)).items():
        out.print(f"{name:<24} {path}")
