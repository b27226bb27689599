"""DePALM's cross-attention (arXiv 2403.13499): the text attends to an encoder's tokens at the input of late LM layers.

One gated module for all layers, as in the paper, or a narrow one in each. Media take no columns of the LM. Where the
release differs from its description (heads that mix positions, dropout at evaluation only), it does what it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.slots.base import (
    EncoderShape,
    GatedAttention,
    Injection,
    InjectionOptions,
    LevelTokens,
    TokenLayout,
)
from perceptune.types import CrossAttended, Slots

VARIANTS: dict[str, dict[str, Any]] = {
    "depalm-xattn": {
        "cross_attention": "shared", "cross_width": 1024, "n_levels": 4, "tokens": "all", "shared_connector": True,
        "mapper": "blocks", "mapper_width": 1024, "mapper_depth": 1, "prompt": "plain", "prompt_tokens": 16,
    },
    "depalm-xattn-narrow": {
        "cross_attention": "per-layer", "cross_width": 64, "n_levels": 4, "tokens": "all", "prompt": "none",
    },
}  # fmt: skip
COUNTS = {
    "depalm-xattn": "(e + 1)*D + B*(6*D*D + 10*D) + 5*(D + 1)*D + 2*D + (d + 1)*D + (D + 1)*d + 1 + 16*p",
    "depalm-xattn-narrow": "K*(2*D*(d + e) + 1)",
}
OF_SLOTS = ("connector_init", "per_layer", "order", "slot_positions", "slot_mask")
OF_CONNECTORS = ("mapper", "shared_connector", "connector_std")


class CrossAttentionOptions(InjectionOptions):
    """Options of injecting methods that do not speak of slots, and those of cross-attention."""

    cross_attention: Literal["shared", "per-layer"] = Field(
        "shared",
        description="one gated module on mapped tokens for all layers of the range, or in each layer a narrow one of "
        "its own on the encoder's tokens",
    )
    cross_width: int = Field(1024, ge=1, description="width of queries, keys and values, all heads together")
    cross_heads: int = Field(8, ge=1, description="heads of the cross-attention")
    cross_eps: float = Field(1e-4, gt=0, description="epsilon of its RMS norms")

    @model_validator(mode="after")
    def _check_cross_attention(self) -> CrossAttentionOptions:
        foreign = dict.fromkeys(OF_SLOTS, "cross-attention has no slots of media")
        if self.cross_attention == "per-layer":
            foreign |= dict.fromkeys(OF_CONNECTORS, "`cross_attention: per-layer` maps the encoder's tokens itself")
        for name, why in foreign.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{why}: leave out `{name}`")
        if self.cross_width % self.cross_heads:
            raise ValueError(f"`cross_width` {self.cross_width} cannot be divided by `cross_heads` {self.cross_heads}")
        return self


class CrossAttention(Injection):
    """Gated cross-attention at the input of each injected layer."""

    Options = CrossAttentionOptions
    options: CrossAttentionOptions

    def __init__(self, options: CrossAttentionOptions, lm: FrozenLM, shapes: Mapping[str, EncoderShape]) -> None:
        super().__init__(options, lm, shapes)
        self.attentions = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    GatedAttention(
                        lm.hidden_size, self._media_size(lm, shape), options.cross_width, options.cross_heads,
                        options.cross_eps, narrow=self._is_narrow,
                    )
                    for _ in range(len(self.injected) if self._is_narrow else 1)
                )
                for name, shape in shapes.items()
            }
        )  # fmt: skip

    @property
    def _is_narrow(self) -> bool:
        return self.options.cross_attention == "per-layer"

    def mappers(self) -> None:
        return None  # their tokens are not states of the LM

    def _media_size(self, lm: FrozenLM, shape: EncoderShape) -> int:
        return shape.dim if self._is_narrow else self.options.cross_width

    def _make_connector(self, lm: FrozenLM, shape: EncoderShape, layout: TokenLayout) -> nn.Module:
        if self._is_narrow:
            return LevelTokens(
                len(self._levels), shape.dim, standardize=self.options.standardize, noise=self.options.feature_noise
            )
        return super()._make_connector(lm, shape, layout)

    def _slots_of(self, modality: str, projected: list[Tensor], present: Tensor, order: int) -> Slots:
        attentions: Any = self.attentions[modality]
        if self._is_narrow:
            kv = [own.project(projected[level]) for own, level in zip(attentions, self.injected.values(), strict=True)]
            layers = {layer: (i, attentions[i]) for i, layer in enumerate(self.injected)}
        else:
            kv = [attentions[0].project(states) for states in projected]
            layers = {layer: (level, attentions[0]) for layer, level in self.injected.items()}
        return Slots(modality, self.range.start, {}, present, order=order, cross=CrossAttended(kv, layers))

    def _place_of(self, modality: str) -> str:
        return f"text, cross-attention to `{modality}`"


METHOD = CrossAttention
