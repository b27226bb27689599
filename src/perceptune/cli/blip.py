"""`perceptune build-instructblip`, `export-instructblip` and `show-attention`."""

from __future__ import annotations

import argparse
import json

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
    """These commands with their options."""
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

    looks = commands.add_parser("show-attention", help="draw where a Q-Former looks in a picture, by instruction")
    looks.add_argument("run")
    looks.add_argument("prompt", help="as to `answer`")
    looks.add_argument("--image", required=True, help="picture file")
    looks.add_argument(
        "--enhanced", action="append", default=[], metavar="TEXT", help="a row with this in front; may be repeated"
    )
    looks.add_argument("--out", default="attention.png", help="default: %(default)s")
    looks.add_argument("--trust", action="store_true", help="let a run folder's recipe name third-party code")
    looks.add_argument("--json", action="store_true")


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


def show_attention(options: argparse.Namespace) -> int:
    """Draws the panel."""
    from perceptune.looking import show_attention as draw

    found = draw(
        options.run, options.image, options.prompt, options.out, enhanced=options.enhanced, trust=options.trust
    )
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for row in found["rows"]:
        out.print(f"{row['label']}\n  looks most at (x, y) {tuple(row['peaks']['mean'])}")
    out.print(f"written: {found['picture']}")
    return 0
