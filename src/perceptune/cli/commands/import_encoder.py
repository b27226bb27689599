"""Import weights of timm's ViT, AST or TimeSformer as a Hugging Face folder.

Examples:
  perceptune import-encoder vit_small.npz models/vit-small
"""

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser, positive


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("file", help="weights as their authors publish them: .pth, .pyth, .safetensors or .npz")
    parser.add_argument("folder", help="Hugging Face model folder to write")
    parser.add_argument("--heads", type=positive, help="attention heads, if the width is not one of the published ones")
    parser.add_argument("--mels", type=positive, default=128, help="mel bands of an AST (default: %(default)s)")
    parser.add_argument("--frames", type=positive, default=1024, help="input frames of an AST (default: %(default)s)")
    parser.add_argument("--stride", type=positive, default=10, help="patch stride of an AST (default: %(default)s)")


def run(options: Namespace) -> None:
    """Write the folder."""
    from perceptune.models.import_encoder import MODALITIES, Heard, import_encoder

    heard = Heard(options.mels, options.frames, options.stride)
    kind = import_encoder(options.file, options.folder, heads=options.heads, heard=heard)
    out.print(f"imported: {options.folder}, for the recipe: encoders: {{{MODALITIES[kind]}: {options.folder}}}")
