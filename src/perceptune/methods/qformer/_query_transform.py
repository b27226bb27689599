"""Two parts of PETAL's predecessor that act in its released Q-Former without being part of the method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from perceptune.lm.frozen_blip import FrozenBlip

SHARE = 0.1
STD = 2e-4


class QueryTransform(nn.Module):
    """Gated query transformation: 0.1 (s a + t) added to each layer's output, a being its self-attention's output.

    With `batch_mean` the first query's cross-attention is given 0.1 of a at that query: while training the mean over
    the batch, so that rows depend on one another, otherwise the row's own, as the released code has it for a batch of
    one. The released code holds as many parameters again that act on nothing; they are left out.
    """

    def __init__(self, layers: int, size: int, *, batch_mean: bool) -> None:
        super().__init__()
        self.batch_mean = batch_mean
        self.scale = nn.Parameter(torch.empty(layers, size).normal_(std=STD))
        self.shift = nn.Parameter(torch.empty(layers, size).normal_(std=STD))

    def attach(self, blip: FrozenBlip) -> None:
        """Hooks it onto every layer of the Q-Former."""
        for index, layer in enumerate(blip.layers):
            self._attach(index, layer)

    def _attach(self, index: int, layer: nn.Module) -> None:
        seen: list[Tensor] = []  # of the pass that is under way

        def attended(_: nn.Module, __: Any, output: Any) -> None:
            seen[:] = [_first(output)]

        def crossed(_: nn.Module, __: Any, output: Any) -> Any:
            own = seen[0][:, :1]
            mean = own.mean(0, keepdim=True).expand_as(own) if self.training else own
            states = _first(output)
            states = torch.cat([states[:, :1] + SHARE * mean, states[:, 1:]], dim=1)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        def through(_: nn.Module, __: Any, output: Any) -> Any:
            states = _first(output) + SHARE * (seen.pop() * self.scale[index] + self.shift[index])
            return (states, *output[1:]) if isinstance(output, tuple) else states

        layer.attention.register_forward_hook(attended)  # type: ignore[union-attr]
        if self.batch_mean and hasattr(layer, "crossattention"):
            layer.crossattention.register_forward_hook(crossed)  # type: ignore[union-attr]
        layer.register_forward_hook(through)


def _first(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
