"""Weights of the Q-Former itself: all of it with queries and projection (`full`), or its last layer (`head`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.methods.qformer import base
from perceptune.methods.qformer.base import FrozenBlip, QFormerMethod, QFormerOptions, Site, TrainingPass

# PETAL's rows: 188.8 M = Q-Former, query tokens and language projection; 11.8 M = the last layer alone.
VARIANTS: dict[str, dict[str, Any]] = {"full": {}, "head": {"parts": ["qformer"], "layers": [-1]}}


class FullOptions(QFormerOptions):
    """Options: which weights are trained."""

    parts: tuple[Literal["qformer", "queries", "projection"], ...] = Field(
        ("qformer", "queries", "projection"), min_length=1
    )
    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="Q-Former layers to train (0-based, -1 = the last); None = all"
    )
    naming: float = Field(
        0.0,
        ge=0,
        description="weight of a loss that moves image tokens towards the answer's word embeddings, for a new Q-Former",
    )
    temperature: float = Field(0.07, gt=0, description="temperature of the cosines in `naming`")
    uses_lm_loss: bool = Field(
        True, description="false = `naming` is the only loss, and the LM does not run in training"
    )

    @model_validator(mode="after")
    def _learns(self) -> FullOptions:
        if not self.uses_lm_loss and not self.naming:
            raise ValueError("`uses_lm_loss: false` leaves nothing to learn from without `naming`")
        return self


class Full(QFormerMethod):
    """Trains existing weights; adds no modules."""

    Options = FullOptions
    options: FullOptions

    def __init__(self, options: FullOptions, blip: FrozenBlip) -> None:
        super().__init__(options, blip)
        self.uses_lm_loss = options.uses_lm_loss
        n = len(blip.layers)
        self._n_layers = n
        for layer in options.layers or ():
            if not -n <= layer < n:
                raise UserError(f"method.layers: the Q-Former has no layer {layer}: its layers are 0 to {n - 1}")
        self._layers = None if options.layers is None else sorted({layer % n for layer in options.layers})
        self._parts = options.parts
        self.taken = nn.ModuleDict()

    def unfreeze(self, blip: FrozenBlip) -> None:
        for part in self._parts:
            self.taken[part] = base.UnfrozenParameters(f"the Q-Former's `{part}`", self._named(part, blip))

    def _named(self, part: str, blip: FrozenBlip) -> Iterator[tuple[str, nn.Parameter]]:
        if part == "queries":
            yield "query_tokens", blip.query_tokens
        elif part == "projection":
            yield from blip.language_projection.named_parameters()
        elif self._layers is None:
            yield from blip.qformer.named_parameters()
        else:
            for layer in self._layers:
                yield from blip.layers[layer].named_parameters(prefix=f"encoder.layer.{layer}")

    def aux_loss(self, blip: FrozenBlip, seen: TrainingPass) -> Tensor | None:
        if not self.options.naming:
            return None
        tokens = blip.language_projection(seen.output.queries)
        words = blip.word_embeddings(seen.target_ids).float()
        loss = base.word_grounding_loss(tokens, words, seen.target_ids, seen.target_mask, self.options.temperature)
        return self.options.naming * loss

    def sites(self) -> list[Site]:
        sites = []
        if "qformer" in self._parts:
            layers = range(self._n_layers) if self._layers is None else self._layers
            sites += self.sites_at(layers, "trained itself")
        if "queries" in self._parts:
            sites.append(Site(0, "query_tokens", "trained themselves"))
        if "projection" in self._parts:
            sites.append(Site(self._n_layers, "language_projection", "trained itself"))
        return sites


METHOD = Full
