"""Optimisations of a frozen LM for training: weights packed for the CPU, fused norms, compiled feed-forward parts.

None of them changes a weight, and results stay the same up to rounding.
"""

from collections.abc import Iterable, Iterator

from torch import nn

from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.kernels.packed_linear import pack
from perceptune.lm.kernels.rms_norm import fuse_rms_norms


def optimize_frozen(lm: FrozenLM, first_layer: int, megabytes: int, *, compiled: bool = False) -> None:
    """Optimise the blocks, those that gradients pass through (`first_layer` and up) before the others.

    `megabytes` limits the memory for copies of weights in the CPU's layout. With `compiled` the feed-forward parts use
    `torch.compile` instead of packing. Raises `UserError` if they are not modules.
    """
    parts = [part for layer in lm.layers for part in layer.modules()]
    fuse_rms_norms(parts)
    for part in parts:
        if isinstance(part, nn.ReLU):
            part.inplace = True  # its input comes from a linear map and is not read again
    skipped = _compiled(lm) if compiled else set()
    upper, lower = lm.layers[first_layer:], lm.layers[:first_layer]
    in_order = [*_modules(upper), lm.model.get_output_embeddings(), *_modules(lower)]
    pack((part for part in in_order if part not in skipped), megabytes)


def optimize_modules(parts: Iterable[nn.Module], megabytes: int) -> None:
    """Optimise any frozen modules: fused norms, weights packed for the CPU."""
    parts = list(parts)
    fuse_rms_norms(parts)
    pack(parts, megabytes)


def _modules(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        yield from layer.modules()


def _compiled(lm: FrozenLM) -> set[nn.Module]:
    """Compile the feed-forward part of every block, in place; return all modules inside."""
    found = [part for layer in lm.layers if isinstance(part := getattr(layer, "mlp", None), nn.Module)]
    if not found:
        raise UserError(
            f"train.compile: the blocks of {type(lm.model).__name__} have no feed-forward module (`mlp`) to compile"
        )
    for part in found:
        part.compile()
    return {inner for part in found for inner in part.modules()}
