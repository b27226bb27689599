"""`perceptune build-instructblip` and `export-instructblip`."""

from __future__ import annotations

import argparse

from rich.console import Console

from perceptune.runlog import speaks

out = Console(highlight=False, soft_wrap=True, quiet=not speaks())
# Options of the new model's shape; their defaults lie in `blip_making.Shape`, which would load torch.
SHAPE = {
    "image-size": "side of the pictures in pixels (default: 224)",
    "layers": "of the Q-Former (default: 6)",
    "hidden": "width of the Q-Former (default: 384)",
    "heads": "default: 6",
    "queries": "image tokens that the LM sees (default: 16)",
    "cross-every": "one of so many layers looks at the picture (default: 2)",
    "vocabulary": "word pieces of the Q-Former's tokenizer, at most (default: 4000)",
    "seed": "of the new weights (default: 0)",
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Both commands with their options."""
    build = commands.add_parser("build-instructblip", help="make a small InstructBLIP of an encoder and an LM")
    build.add_argument("folder", help="where it goes: an ordinary Hugging Face folder")
    build.add_argument("--data", required=True, help="JSON lines whose words its Q-Former is to read")
    build.add_argument("--lm", default="default", help="`default`, a Hugging Face id or a folder")
    build.add_argument("--encoder", default="default", help="a DINOv2: `default`, a Hugging Face id or a folder")
    for name, meaning in SHAPE.items():
        build.add_argument(f"--{name}", type=int, help=meaning)
    export = commands.add_parser("export-instructblip", help="write a trained InstructBLIP as a Hugging Face folder")
    export.add_argument("run")
    export.add_argument("folder")
    export.add_argument("--trust", action="store_true", help="let the run's recipe name third-party code")


def build_instructblip(options: argparse.Namespace) -> int:
    """Makes the model."""
    from perceptune.blip_making import Shape, make_instructblip
    from perceptune.config import validate

    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in SHAPE}
    shape = validate(Shape, {name: value for name, value in given.items() if value is not None}, "build-instructblip")
    make_instructblip(options.folder, options.data, lm=options.lm, encoder=options.encoder, shape=shape)
    out.print(f"its Q-Former knows nothing yet: {options.folder}")
    flags = f"--data {options.data} --lm {options.folder} --method full"
    out.print(f"next:  perceptune train {flags} backbone=instructblip")
    return 0


def export_instructblip(options: argparse.Namespace) -> int:
    """Writes the folder."""
    from perceptune.blip_making import export_instructblip as export

    out.print(f"written: {export(options.run, options.folder, trust=options.trust)}")
    return 0
