"""Train and evaluate on real models and data, and draw the results.

Examples:
  perceptune demo
  perceptune demo --smoke --run runs/smoke
"""

from pathlib import Path

from perceptune.cli.output import out, print_scores
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("--run", default="runs/demo", help="run folder (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="run a demo shortened to about two minutes")


def run(options: Namespace) -> int:
    """Run the demo; return 1 if the model does not use the images."""
    from perceptune.tools.demo import run_demo

    results = run_demo(Path(options.run), smoke=options.smoke, say=out.print, print_scores=print_scores)
    if results["gap_open_interval"][0] <= 0:
        out.print("this run answers open questions no better than with shuffled images: something is broken")
        return 1
    return 0
