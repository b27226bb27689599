"""Fetch the default models and data sets, or others by name.

Examples:
  perceptune assets --list
  perceptune assets
  perceptune assets whisper-base
"""

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="assets to fetch (default: those that `default` stands for)"
    )
    parser.add_argument("--list", action="store_true", help="list the assets, their licences and where each is stored")
    parser.add_argument("--accept-terms", action="store_true", help="accept the terms of the named assets")


def run(options: Namespace) -> None:
    """Fetch assets, or list them."""
    from perceptune.utils.assets import ASSETS
    from perceptune.utils.downloads import default_names, fetch, present

    if options.list:
        for name, asset in ASSETS.items():
            terms = f"; terms: {asset.terms.name}, {asset.terms.address}" if asset.terms else ""
            lines = (asset.what, f"licence: {asset.licence}{terms}", present(name) or "not fetched")
            out.print(f"{name:<24} " + f"\n{'':<24} ".join(map(str, lines)))
        return
    for name, path in fetch(options.names or default_names(), accept_terms=options.accept_terms).items():
        out.print(f"{name:<24} {path}")
