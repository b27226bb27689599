"""Import an official eP-ALM checkpoint as a run.

Examples:
  perceptune import-epalm best.pth --lm facebook/opt-2.7b --encoder google/vit-base-patch16-224
"""

from pathlib import Path

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("file", help="checkpoint as its training saved it")
    parser.add_overrides("recipe keys, such as task.name=jsonl")
    parser.add_argument("--lm", required=True, help="LM it was trained with: a Hugging Face id or a folder")
    parser.add_argument("--encoder", required=True, help="encoder it was trained with: a Hugging Face id or a folder")
    parser.add_argument("--out", help="run folder (default: runs/<name of the file>)")
    told = "it was trained on captions, if the file does not say so"
    parser.add_argument("--captions", action="store_true", help=told)


def run(options: Namespace) -> None:
    """Write the run."""
    from perceptune.config.recipe import load_recipe
    from perceptune.models.import_epalm import import_official
    from perceptune.models.run_folder import RECIPE

    made = import_official(
        options.file, options.out or Path("runs") / Path(options.file).stem, lm=options.lm, encoder=options.encoder,
        captions=options.captions, overrides=options.overrides,
    )  # fmt: skip
    out.print(f"imported: {made}")
    [modality] = load_recipe(str(made / RECIPE)).encoders
    out.print(f'next:  perceptune answer {made} --{modality} FILE "..."')
