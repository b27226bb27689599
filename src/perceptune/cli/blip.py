"""`perceptune build-instructblip`, `export-instructblip` and `show-attention`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console

from perceptune.config.command_schema import BuildConfig
from perceptune.config.recipe import load_recipe, validate
from perceptune.config.schema import NamedPart
from perceptune.errors import UserError
from perceptune.utils.run_log import is_main_process

out = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """These commands with their options."""
    build = commands.add_parser("build-instructblip", help="make a small InstructBLIP of an encoder and an LM")
    build.add_argument("folder", help="folder to write, an ordinary Hugging Face model")
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="JSON lines whose words the Q-Former is to read")
    source.add_argument(
        "--recipe",
        help="a recipe whose `task` has the words that the Q-Former is to read, and whose `build` has settings",
    )
    for name, field in BuildConfig.model_fields.items():
        build.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(field.default),
            help=f"{field.description} (default: {field.default})",
        )
    export = commands.add_parser("export-instructblip", help="write a trained InstructBLIP as a Hugging Face folder")
    export.add_argument("run")
    export.add_argument("folder")
    export.add_argument("--trust", action="store_true", help="let the run's recipe name third-party code")

    looks = commands.add_parser("show-attention", help="draw where a Q-Former looks in a picture, by instruction")
    looks.add_argument("run")
    looks.add_argument("prompt", help="question, as for `perceptune answer`")
    looks.add_argument("--image", required=True, help="picture file")
    looks.add_argument(
        "--enhanced",
        action="append",
        default=[],
        metavar="TEXT",
        help="add a row with this text before the question; may be repeated",
    )
    looks.add_argument("--out", default="attention.png", help="picture to write (default: %(default)s)")
    looks.add_argument("--trust", action="store_true", help="let a run folder's recipe name third-party code")
    looks.add_argument("--json", action="store_true")


def build_instructblip(options: argparse.Namespace) -> int:
    """Makes the model."""
    from perceptune.models.instructblip.create import make_instructblip

    given = {name: getattr(options, name) for name in BuildConfig.model_fields}
    told = {name: value for name, value in given.items() if value is not None}
    task, build, flags = _asked(options)
    make_instructblip(options.folder, task, validate(BuildConfig, {**build, **told}, "build-instructblip"))
    out.print(f"its Q-Former knows nothing yet: {options.folder}")
    out.print(f"next:  perceptune train {flags}")
    return 0


def _asked(options: argparse.Namespace) -> tuple[NamedPart, dict[str, Any], str]:
    """Whose words are to be read, the recipe's `build`, and how the model may be trained."""
    if options.recipe is None:
        flags = f"--data {options.data} --lm {options.folder} --method full backbone=instructblip"
        return NamedPart.model_validate({"name": "jsonl", "train": options.data}), {}, flags
    recipe = load_recipe(options.recipe)
    if recipe.task is None:
        raise UserError(f"{options.recipe}: no `task`, whose words the Q-Former is to read")
    build = {} if recipe.build is None else recipe.build.model_dump()
    return recipe.task, build, f"{options.recipe} lm={options.folder}"


def export_instructblip(options: argparse.Namespace) -> int:
    """Writes the folder."""
    from perceptune.models.instructblip.create import export_instructblip as export

    out.print(f"written: {export(options.run, options.folder, trust=options.trust)}")
    return 0


def show_attention(options: argparse.Namespace) -> int:
    """Draws the panel."""
    from perceptune.tools.attention_maps import show_attention as draw

    found = draw(
        options.run, options.image, options.prompt, options.out, enhanced=options.enhanced, trust=options.trust
    )
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for row in found["rows"]:
        out.print(f"{row['label']}\n  looks most at (x, y) {tuple(row['peaks']['mean'])}")
    out.print(f"written: {found['image']}")
    return 0
