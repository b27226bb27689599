"""A part of PETAL's predecessor that is active in its released Q-Former without being part of the method."""

from typing import Any

import torch
from torch import Tensor, nn

from perceptune.lm.frozen_blip import FrozenBlip

SHARE = 0.1
STD = 2e-4


class QueryTransform(nn.Module):
    """Gated query transformation: 0.1 (s a + t) added to each layer's output, a being its self-attention's output.

    The released code holds the same number of parameters again without any effect; they are left out.
    """

    def __init__(self, layers: int, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(layers, size).normal_(std=STD))
        self.shift = nn.Parameter(torch.empty(layers, size).normal_(std=STD))

    def attach(self, blip: FrozenBlip) -> None:
        """Hook it onto every layer of the Q-Former."""
        for index, layer in enumerate(blip.layers):
            self._attach(index, layer)

    def _attach(self, index: int, layer: nn.Module) -> None:
        seen: list[Tensor] = []  # of the current pass

        def attended(_: nn.Module, __: Any, output: Any) -> None:
            seen[:] = [output[0] if isinstance(output, tuple) else output]

        def through(_: nn.Module, __: Any, output: Any) -> Any:
            added = SHARE * (seen.pop() * self.scale[index] + self.shift[index])
            return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

        layer.attention.register_forward_hook(attended)  # type: ignore[union-attr]
        layer.register_forward_hook(through)
