"""Base of the slot methods: a method owns every trainable tensor."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from perceptune.encoders.base import TokenSelection
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.base import Site as Site
from perceptune.methods.base import TrainableMethod
from perceptune.types import Features, Slots


@dataclass(frozen=True)
class EncoderShape:
    """Shape of a frozen encoder, as far as a method needs it."""

    n_layers: int
    dim: int
    max_media: int = 1  # of a sample
    n_tokens: int = 1  # with `tokens: all`, special tokens included
    n_special: int = 0  # of these, the tokens in front of the patches, [CLS] first
    grid: tuple[int, int] | None = None  # rows and columns of the patches; None = they are no grid


class Method(TrainableMethod):
    """Base of all methods of the slot model. A leaf file holds one subclass and its named `VARIANTS`."""

    @property
    @abstractmethod
    def first_layer(self) -> int:
        """First LM layer whose input depends on media or on anything trained; layers below receive text only."""

    @abstractmethod
    def levels(self, modality: str) -> list[int]:
        """Return the encoder layers (0-based) whose tokens are used."""

    def tokens(self, modality: str) -> TokenSelection:
        """Return which tokens of each level are used."""
        return "cls"

    @property
    def slots_see_text(self) -> bool:
        """Whether slots attend to the whole text, so that what attends to them depends on the text behind it."""
        return False

    @property
    def is_in_text(self) -> bool:
        """Whether media stand in the text, at the places of their marks, instead of in front of it."""
        return False

    @classmethod
    def count_slots(cls, options: Any, shape: EncoderShape, modality: str) -> int:
        """Return the number of slots of a medium from an encoder of this shape."""
        return 1

    @abstractmethod
    def build_slots(self, features: Mapping[str, Features], batch: int) -> list[Slots]:
        """Build the slots, i.e. which states enter which columns at which layer, for `batch` rows."""

    def fit_connections(self, modality: str, features: Tensor, wanted: Mapping[int, Tensor]) -> None:
        """Initialise a modality's connections from features (N, n_levels, T, dim) and their target states (N, d).

        `wanted` has an entry for each LM layer of `entries`.
        """
        raise NotImplementedError

    def mappers(self) -> nn.Module | None:
        """Return the part that maps features to states of slots; None if there is none."""
        return None

    def entries(self) -> list[int]:
        """Return the LM layers that the levels, in the order of `levels`, enter first."""
        raise NotImplementedError

    def attach(self, lm: FrozenLM) -> None:
        """Hook deltas `y + delta(x)` onto named modules of the LM. Called once, after the method is built."""

    def unfreeze(self, lm: FrozenLM, encoders: Mapping[str, nn.Module]) -> None:
        """Register the weights of the LM and the encoders that are to be trained as the method's own.

        Called once, before `attach`. Raises `UserError` for weights that cannot be trained as they are.
        """
