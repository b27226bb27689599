"""A method owns every trainable tensor: trained is `method.parameters()`, saved is `method.state_dict()`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel
from torch import Tensor, nn

from perceptune.lm import FrozenLM
from perceptune.types import Features, Slots


@dataclass(frozen=True)
class EncoderShape:
    """What a method must know of a frozen encoder."""

    n_layers: int
    dim: int


@dataclass(frozen=True)
class Site:
    """One place where a method touches the LM, for `perceptune show`."""

    layer: int
    where: str  # module name, or the columns that are overwritten
    what: str


class Method(nn.Module, ABC):
    """Base of all methods. A leaf file holds one subclass and the `VARIANTS` its names stand for."""

    Options: ClassVar[type[BaseModel]]

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
    def plan(self, features: Mapping[str, Features], batch: int) -> list[Slots]:
        """What goes into which columns at which layer, for `batch` rows."""

    @abstractmethod
    def sites(self) -> list[Site]:
        """Every place in the LM that the method touches."""

    def attach(self, lm: FrozenLM) -> None:
        """Hook deltas `y + delta(x)` onto named modules of the LM. Called once, after the method is built."""

    def take_over(self, lm: FrozenLM, encoders: Mapping[str, nn.Module]) -> None:
        """Makes weights of the LM and the encoders, as far as they are to be trained, the method's own.

        Called once, before `attach`. Raises `UserError` for weights that cannot be trained as they are.
        """

    @property
    def trains_lm(self) -> bool:
        """Whether weights of the LM itself are trained."""
        return False

    @property
    def trains_encoders(self) -> bool:
        """Whether weights of the encoders are trained: then features change with every step and are never kept."""
        return False

    def set_statistics(self, modality: str, mean: Tensor, std: Tensor) -> None:
        """Feature statistics (n_levels, dim) of the training split, for methods that standardise."""

    @property
    def standardizes(self) -> bool:
        """Whether `set_statistics` is wanted before training."""
        return False

    def text_side(self) -> Sequence[nn.Module | nn.Parameter]:
        """Parts that act without any medium (prompt, adapters): the constant-rate group of the optimizer."""
        return ()

    def unfrozen_side(self) -> Mapping[str, tuple[nn.Module, float]]:
        """Parts of the base models that are trained, with the constant rate of each: groups of their own."""
        return {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Named parameters by optimizer group: `connector` (scheduled), `prompt` (its own rate), then `unfrozen_side`.

        A group with a rate of its own names it as `lr`.
        """
        group_of = {id(p): "prompt" for part in self.text_side() for p in _parameters(part)}
        groups: dict[str, dict[str, Any]] = {name: {"name": name, "named": []} for name in ("connector", "prompt")}
        for name, (part, rate) in self.unfrozen_side().items():
            groups[name] = {"name": name, "named": [], "lr": rate}
            group_of |= {id(p): name for p in part.parameters()}
        for name, parameter in self.named_parameters():
            groups[group_of.get(id(parameter), "connector")]["named"].append((name, parameter))
        return [group for group in groups.values() if group["named"]]


def _parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())
