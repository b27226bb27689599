"""What owns the trainable tensors of a backbone: trained is its `parameters()`, saved is its `state_dict()`.

`methods/` holds those of the spliced backbone, `qformer_methods/` those of a Q-Former's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """One place where a method touches a frozen model, for `perceptune show`."""

    layer: int
    where: str  # module name, or the columns that are overwritten
    what: str


class TrainableMethod(nn.Module, ABC):
    """Base of the methods of every backbone: what the training loop and run folders need of them."""

    Options: ClassVar[type[BaseModel]]

    @abstractmethod
    def sites(self) -> list[Site]:
        """Every place in the frozen model that the method touches."""

    def describe_inputs(self) -> dict[str, dict[str, Any]] | None:
        """Describe which layers of each encoder enter which layers of the LM; None if a method has no such layers.

        All layers count from 0. `prompt`: the layers at which trained vectors enter.
        """
        return None

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

    @property
    def starts_from_answers(self) -> bool:
        """Whether connections are to be fitted to the LM's states of the training answers before the first step."""
        return False

    def auxiliary_group(self) -> tuple[nn.Module, float] | None:
        """A module that is trained beside the method, for the sake of training alone, and its constant rate.

        It is no submodule: neither saved with the method nor counted. A checkpoint keeps it with the optimizer.
        """
        return None

    def prompt_group(self) -> Sequence[nn.Module | nn.Parameter]:
        """Parts that act without any medium (prompt, adapters): the constant-rate group of the optimizer."""
        return ()

    def unfrozen_group(self) -> Mapping[str, tuple[nn.Module, float]]:
        """Parts of the base models that are trained, with the constant rate of each: groups of their own."""
        return {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Named parameters by optimizer group: `connector` (scheduled), `prompt` (its own rate), then `unfrozen_group`.

        A group with a rate of its own names it as `lr`.
        """
        group_of = {id(p): "prompt" for part in self.prompt_group() for p in _parameters(part)}
        groups: dict[str, dict[str, Any]] = {name: {"name": name, "named": []} for name in ("connector", "prompt")}
        for name, (part, rate) in self.unfrozen_group().items():
            groups[name] = {"name": name, "named": [], "lr": rate}
            group_of |= {id(p): name for p in part.parameters()}
        for name, parameter in self.named_parameters():
            groups[group_of.get(id(parameter), "connector")]["named"].append((name, parameter))
        return [group for group in groups.values() if group["named"]]


def _parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def count(module: nn.Module, *, without: nn.Module | None = None) -> int:
    """Parameters of a module, tied weights once, of quantised ones the numbers they stand for.

    `without` leaves out those that are another module's, too.
    """
    others = set() if without is None else {id(parameter) for parameter in without.parameters()}
    own = [parameter for parameter in module.parameters() if id(parameter) not in others]
    return sum(math.prod(getattr(getattr(p, "quant_state", None), "shape", p.shape)) for p in own)


def count_trained(method: nn.Module) -> int:
    """Parameters of a method that `train.freeze` leaves to be trained."""
    return sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
