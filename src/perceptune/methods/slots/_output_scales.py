"""Trained scales and biases behind frozen norms and linear maps of an LM's blocks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.parts.peft_layers import linear_maps
from perceptune.methods.slots._method import Site


class OutputScale(nn.Module):
    """y * scale + bias for the output y of a frozen module, from scale 1 and bias 0 on.

    Behind a norm this is training the norm's own scale and bias, and fused kernels of the frozen norm still apply.
    """

    def __init__(self, shape: Sequence[int], *, bias: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(*shape))
        self.bias = nn.Parameter(torch.zeros(*shape)) if bias else None

    def forward(self, y: Tensor) -> Tensor:
        scaled = y * self.scale
        return (scaled if self.bias is None else scaled + self.bias).to(y.dtype)


@dataclass(frozen=True)
class _Place:
    layer: int
    path: str  # inside the block
    module: nn.Module
    shape: Sequence[int]
    has_bias: bool


class OutputScales(nn.ModuleDict):
    """An `OutputScale` for each of some modules, by `LAYER/PATH`, `/` for `.`."""

    def __init__(self, lm: FrozenLM, places: Sequence[_Place]) -> None:
        super().__init__()
        self._led: list[tuple[Site, str, nn.Module]] = []
        for place in places:
            key = f"{place.layer}/{place.path.replace('.', '/')}"
            self[key] = OutputScale(place.shape, bias=place.has_bias)
            what = "trained scale and bias of its output" if place.has_bias else "trained scale of its output"
            name = f"{lm.layers_path}.{place.layer}.{place.path}"
            self._led.append((Site(place.layer, name, what), key, place.module))

    def attach(self) -> None:
        """Register the hooks on the LM."""
        for _, key, module in self._led:
            module.register_forward_hook(self._scaling(key))

    def sites(self) -> list[Site]:
        """Return the places of the modules."""
        return [site for site, *_ in self._led]

    def _scaling(self, key: str) -> Callable[..., Tensor]:
        return lambda _, __, y: self[key](y)


def norm_scales(lm: FrozenLM, layers: Iterable[int]) -> OutputScales:
    """Return the scales of all norms in these blocks, with biases where the norms have biases.

    Raises `UserError` if there are no norms with a scale.
    """
    places = [
        _Place(layer, path, norm, norm.weight.shape, getattr(norm, "bias", None) is not None)
        for layer in layers
        for path, norm in _norms(lm.layers[layer])
    ]
    if not places:
        raise UserError(f"method.tune_norms: the blocks of {type(lm.model).__name__} have no norms with a scale")
    return OutputScales(lm, places)


def linear_scales(lm: FrozenLM, layers: Iterable[int]) -> OutputScales:
    """Return scales and biases of the outputs of all linear maps in these blocks."""
    places = []
    for layer in layers:
        for path in linear_maps(lm.layers[layer]):
            module: Any = lm.layers[layer].get_submodule(path)
            width = module.out_features if isinstance(module, nn.Linear) else module.nf  # GPT-2's Conv1D
            places.append(_Place(layer, path, module, (width,), has_bias=True))
    return OutputScales(lm, places)


def _norms(block: nn.Module) -> list[tuple[str, Any]]:
    """Return paths and modules of a block's norms, which each family of LMs has a class of its own for."""
    return [
        (path, module)
        for path, module in block.named_modules()
        if type(module).__name__.endswith("Norm") and module._parameters.get("weight") is not None
    ]
