"""LLaMA-Adapter (arXiv 2303.16199) on a Q-Former: trained prompts that self-attention attends to through gates.

The gates are zero at the start, so nothing changes. `as_released: true` is the variant of this name in PETAL's table:
not LLaMA-Adapter but UniAdapter's bottleneck (arXiv 2302.06605), after every self-attention and again before every
cross-attention, with the unused parts that were created: 4.8 million parameters, of which 2.4 million have an effect.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.methods.qformer.base import FrozenBlip, QFormerMethod, QFormerOptions, Site

STD = 0.02  # of the prompts at the start
SHARE = 0.1  # weight of the bottleneck's output


class LlamaAdapterOptions(QFormerOptions):
    """Options of both forms."""

    tokens: int = Field(10, ge=1, description="prompts per layer")
    layers: int | None = Field(None, ge=1, description="number of last layers of the Q-Former with prompts; None = all")
    as_released: bool = Field(False, description="PETAL's baseline of this name: bottlenecks in all layers, no prompts")
    r: int = Field(128, ge=1, description="bottleneck width with `as_released`")


class GatedPrompts(nn.Module):
    """Prompts (n, d) of one self-attention, and a gate for each head: tanh(g) softmax(q K^T) V is added to it."""

    def __init__(self, tokens: int, size: int, heads: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(tokens, size) * STD)
        self.gate = nn.Parameter(torch.zeros(heads))
        self._query: Tensor | None = None  # of the current pass

    def attach(self, attention: Any) -> None:
        """Hook the prompts onto a multi-head attention of a Q-Former."""
        attention.query.register_forward_hook(self._note)
        attention.register_forward_hook(self._add)

    def _note(self, _: nn.Module, __: Any, query: Tensor) -> None:
        self._query = query

    def _add(self, attention: Any, _: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        assert self._query is not None
        heads = self.gate.shape[0]
        query, self._query = self._query.unflatten(-1, (heads, -1)).transpose(1, 2), None  # (B, heads, T, d/heads)
        key, value = (
            part(self.prompts).unflatten(-1, (heads, -1)).transpose(0, 1) for part in (attention.key, attention.value)
        )  # (heads, n, d/heads)
        weights = (query @ key.transpose(1, 2) * attention.scaling).softmax(-1)
        seen = weights @ value * self.gate.tanh()[:, None, None]
        return (output[0] + seen.transpose(1, 2).flatten(2), *output[1:])


class Bottleneck(nn.Module):
    """UniAdapter's x + 0.1 W2 relu(W1 LN(x)), with the parts that its released code creates and never calls."""

    def __init__(self, size: int, r: int) -> None:
        super().__init__()
        self.norm, self.down, self.up = nn.LayerNorm(size), nn.Linear(size, r), nn.Linear(r, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.unused = nn.ModuleList([nn.Linear(r, size), nn.Linear(r, size), nn.LayerNorm(size)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the bottleneck: (..., d) -> (..., d)."""
        added: Tensor = self.up(torch.relu(self.down(self.norm(x))))
        return x + SHARE * added

    def attach(self, layer: Any) -> None:
        """Hook it onto a layer of a Q-Former."""
        layer.attention.register_forward_hook(lambda _, __, output: self(output))
        if hasattr(layer, "crossattention"):
            layer.crossattention.register_forward_pre_hook(lambda _, args: (self(args[0]), *args[1:]))


class LlamaAdapter(QFormerMethod):
    """One part per layer, in either form."""

    Options = LlamaAdapterOptions

    def __init__(self, options: LlamaAdapterOptions, blip: FrozenBlip) -> None:
        super().__init__(options, blip)
        n, size = len(blip.layers), blip.hidden_size
        top = n if options.layers is None else options.layers
        if top > n:
            raise UserError(f"method.layers: the Q-Former has {n} layers, not {top}")
        self._first, self._released = n - top, options.as_released
        if options.as_released and self._first:
            raise UserError("method.layers: `as_released` has a part in every layer")
        self.parts = nn.ModuleList(
            Bottleneck(size, options.r) if options.as_released
            else GatedPrompts(options.tokens, size, int(blip.qformer.config.num_attention_heads))
            for _ in range(top)
        )  # fmt: skip

    def attach(self, blip: FrozenBlip) -> None:
        for layer, part in zip(list(blip.layers)[self._first :], self.parts, strict=True):
            part.attach(layer if self._released else layer.attention.attention)  # type: ignore[operator, union-attr]

    def sites(self) -> list[Site]:
        what = "bottleneck" if self._released else "prompts behind zero gates"
        where = "qformer.encoder.layer.{}.attention".format
        return [Site(layer, where(layer), what) for layer in range(self._first, self._first + len(self.parts))]


METHOD = LlamaAdapter
