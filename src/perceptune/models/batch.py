"""What goes into a forward pass, and what a model consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from perceptune.models.text_format import Tokens
from perceptune.types import Features


@dataclass(frozen=True)
class Batch:
    """Texts with the encoder features of their media."""

    tokens: Tokens
    features: Mapping[str, Features]

    @property
    def n_tokens(self) -> int:
        """Supervised tokens, by which a loss sum is divided."""
        return self.tokens.n_predicted

    @property
    def n_samples(self) -> int:
        """Rows."""
        return len(self.tokens.input_ids)


class FrozenPart(NamedTuple):
    """A frozen part as `perceptune show` lists it."""

    what: str
    module: nn.Module
