"""Draw which parts of an image a Q-Former attends to, by instruction.

Examples:
  perceptune show-attention runs/mine "what color is this?" --image photo.jpg
"""

from perceptune.cli.output import out, print_json
from perceptune.cli.parsing import Namespace, Parser, any_text


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("prompt", type=any_text, help="question, as for `perceptune answer`")
    parser.add_argument("--image", required=True, metavar="FILE", help="image file")
    parser.add_argument("--enhanced", action="append", default=[], metavar="TEXT",
                        help="add a row with this text before the question; repeatable")  # fmt: skip
    parser.add_argument("--out", default="attention.png", metavar="FILE", help="image to write (default: %(default)s)")
    parser.add_trust()
    parser.add_json()


def run(options: Namespace) -> None:
    """Draw the panel."""
    from perceptune.tools.attention_maps import show_attention

    found = show_attention(
        options.run, options.image, options.prompt, options.out, enhanced=options.enhanced, trust=options.trust
    )
    if options.json:
        print_json(found)
        return
    for row in found["rows"]:
        out.print(f"{row['label']}\n  looks most at (x, y) {tuple(row['peaks']['mean'])}")
    out.print(f"written: {found['image']}")
