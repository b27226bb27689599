"""A method owns every trainable tensor: trained is `method.parameters()`, saved is `method.state_dict()`."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.base import Site as Site
from perceptune.methods.base import TrainableMethod
from perceptune.types import Features, Slots


@dataclass(frozen=True)
class EncoderShape:
    """What a method must know of a frozen encoder."""

    n_layers: int
    dim: int


class Method(TrainableMethod):
    """Base of all methods of the spliced backbone. A leaf file holds one subclass and the `VARIANTS` its names mean."""

    @property
    @abstractmethod
    def first_layer(self) -> int:
        """First LM layer whose input depends on media or on anything trained. Layers below see bare text only."""

    @abstractmethod
    def levels(self, modality: str) -> list[int]:
        """Encoder layers (0-based) whose tokens are wanted."""

    def tokens(self, modality: str) -> Literal["cls", "all"]:
        """Which tokens of each level are wanted."""
        return "cls"

    @abstractmethod
    def build_slots(self, features: Mapping[str, Features], batch: int) -> list[Slots]:
        """What goes into which columns at which layer, for `batch` rows."""

    def fit_connections(self, modality: str, features: Tensor, wanted: Mapping[int, Tensor]) -> None:
        """Start the connections of a modality from features (N, n_levels, T, dim) and the states (N, d) wanted of them.

        `wanted` has an entry for each LM layer of `entries`.
        """
        raise NotImplementedError

    def entries(self) -> list[int]:
        """LM layers at which the levels, in the order of `levels`, enter first."""
        raise NotImplementedError

    def attach(self, lm: FrozenLM) -> None:
        """Hook deltas `y + delta(x)` onto named modules of the LM. Called once, after the method is built."""

    def unfreeze(self, lm: FrozenLM, encoders: Mapping[str, nn.Module]) -> None:
        """Makes weights of the LM and the encoders, as far as they are to be trained, the method's own.

        Called once, before `attach`. Raises `UserError` for weights that cannot be trained as they are.
        """
