"""Show the parts, parameter counts and modified layers of a recipe or run.

Examples:
  perceptune show paper/epalm
  perceptune show runs/mine --json
"""

from rich.table import Table

from perceptune.cli.output import out, print_json
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("source", metavar="RECIPE|RUN", help="a recipe file, the name of a shipped recipe, or a run")
    parser.add_json()


def run(options: Namespace) -> None:
    """Print the summary."""
    from perceptune.tools.summary import recipe_of, stored_precision, summarize

    shown = summarize(recipe_of(options.source))
    if stored := stored_precision(options.source):
        shown["precision"] = stored
    if options.json:
        print_json(shown)
        return
    table = Table("part", "what", "parameters", "", title=f"{shown['recipe']}: {shown['method']}", title_justify="left")
    for part in shown["parts"]:
        table.add_row(part["name"], part["what"], f"{part['parameters']:,}", "trained" if part["trained"] else "frozen")
    out.print(table)
    out.print(f"trained {shown['trainable']:,} of {shown['total']:,} = {100 * shown['share']:.3f} %")
    first, layers = shown["first_layer"], shown["lm_layers"]
    out.print(
        f"layers below {first} of {layers} see bare text: run without gradient, once per distinct text"
        if first else f"all {layers} layers run with gradient: media or trained parts enter from the first one on"
    )  # fmt: skip
    dtypes = dict(shown["precision"])
    reason = dtypes.pop("reason", "")
    out.print(", ".join(f"{key}: {value}" for key, value in dtypes.items()) + (f" ({reason})" if reason else ""))
    places = Table("layer", "where", "what", title="touched places", title_justify="left")
    for site in shown["sites"]:
        places.add_row(str(site["layer"]), site["where"], site["what"])
    out.print(places)
