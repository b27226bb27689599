"""Build a small InstructBLIP from an encoder and an LM.

Examples:
  perceptune build-instructblip models/small-blip --data my.jsonl
  perceptune build-instructblip models/reading-blip --data my.jsonl --qformer minilm
"""

from typing import Any

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser
from perceptune.config.command_schema import BuildConfig
from perceptune.config.recipe import load_recipe, validate
from perceptune.config.schema import NamedPart
from perceptune.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("folder", help="Hugging Face model folder to write")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="JSON lines from whose words the Q-Former's tokenizer is made")
    source.add_argument("--recipe", help="recipe with a `task` to take the words from, and settings under `build`")
    for name, field in BuildConfig.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=str if field.default is None else type(field.default),
            help=f"{field.description} (default: {field.default})",
        )  # fmt: skip


def run(options: Namespace) -> None:
    """Write the model."""
    from perceptune.models.instructblip.create import make_instructblip

    given = {name: getattr(options, name) for name in BuildConfig.model_fields}
    told = {name: value for name, value in given.items() if value is not None}
    task, build, flags = _asked(options)
    config = validate(BuildConfig, {**build, **told}, "build-instructblip")
    make_instructblip(options.folder, task, config)
    start = "is untrained" if config.qformer is None else f"starts from {config.qformer}, its cross-attention untrained"
    out.print(f"its Q-Former {start}: {options.folder}")
    out.print(f"next:  perceptune train {flags}")


def _asked(options: Namespace) -> tuple[NamedPart, dict[str, Any], str]:
    """Return the task that provides the vocabulary, the recipe's `build`, and how the model may be trained."""
    if options.recipe is None:
        flags = f"--data {options.data} --lm {options.folder} --method full backbone=instructblip"
        return NamedPart.model_validate({"name": "jsonl", "train": options.data}), {}, flags
    recipe = load_recipe(options.recipe)
    if recipe.task is None:
        raise UserError(f"{options.recipe}: no `task`, whose words the Q-Former is to read")
    build = {} if recipe.build is None else recipe.build.model_dump(exclude_unset=True)
    return recipe.task, build, f"{options.recipe} lm={options.folder}"
