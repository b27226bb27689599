"""`perceptune import-epalm` and `import-encoder`: weights of others in the layouts they were published in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from perceptune.cli.parsing import positive
from perceptune.utils.run_log import is_main_process

out = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())


def add_imports(commands: argparse._SubParsersAction[Any]) -> None:
    """These commands with their options."""
    official = commands.add_parser("import-epalm", help="import an official eP-ALM checkpoint as a run")
    official.add_argument("file", help="checkpoint as its training saved it")
    official.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, such as task.name=jsonl")
    official.add_argument("--lm", required=True, help="the LM it was trained with: a Hugging Face id or a folder")
    official.add_argument("--encoder", required=True, help="the encoder it was trained with, likewise")
    official.add_argument("--out", help="run folder (default: runs/<name of the file>)")
    official.add_argument("--captions", action="store_true", help="trained without questions; most files tell")

    encoder = commands.add_parser("import-encoder", help="import weights of timm's ViT, AST or TimeSformer as a folder")
    encoder.add_argument("file", help="weights as their authors publish them: .pth, .pyth, .safetensors or .npz")
    encoder.add_argument("folder", help="folder to write, an ordinary Hugging Face model")
    encoder.add_argument("--heads", type=positive, help="attention heads, if the width is none of the published ones")
    encoder.add_argument("--mels", type=positive, default=128, help="mel bands of an AST (default: %(default)s)")
    encoder.add_argument(
        "--frames", type=positive, default=1024, help="frames that an AST hears (default: %(default)s)"
    )
    encoder.add_argument("--stride", type=positive, default=10, help="steps of an AST's patches (default: %(default)s)")


def import_epalm(options: argparse.Namespace) -> int:
    """Makes the run."""
    from perceptune.config.recipe import load_recipe
    from perceptune.models.import_epalm import import_official
    from perceptune.models.run_folder import RECIPE

    run = import_official(
        options.file,
        options.out or Path("runs") / Path(options.file).stem,
        lm=options.lm,
        encoder=options.encoder,
        captions=options.captions,
        overrides=options.overrides,
    )
    out.print(f"imported: {run}")
    [modality] = load_recipe(str(run / RECIPE)).encoders
    out.print(f'next:  perceptune answer {run} --{modality} FILE "..."')
    return 0


def import_encoder(options: argparse.Namespace) -> int:
    """Makes the folder."""
    from perceptune.models.import_encoder import MODALITIES, Heard
    from perceptune.models.import_encoder import import_encoder as convert

    heard = Heard(options.mels, options.frames, options.stride)
    kind = convert(options.file, options.folder, heads=options.heads, heard=heard)
    out.print(f"imported: {options.folder}, for the recipe: encoders: {{{MODALITIES[kind]}: {options.folder}}}")
    return 0
