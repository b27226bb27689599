"""Base of the trainable methods: `parameters()` are trained, `state_dict()` is saved.

`methods/slots/` holds the methods of the slot model, `methods/qformer/` those of a Q-Former.
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
    """A place where a method changes a frozen model, for `perceptune show`."""

    layer: int
    where: str  # module name, or the columns that are overwritten
    what: str


class TrainableMethod(nn.Module, ABC):
    """Interface of every backbone's methods to the training loop and run folders."""

    Options: ClassVar[type[BaseModel]]

    @abstractmethod
    def sites(self) -> list[Site]:
        """Return every place in the frozen model that the method changes."""

    def describe_inputs(self) -> dict[str, dict[str, Any]] | None:
        """Describe which layers of each encoder enter which layers of the LM; None if a method has no such layers.

        All layers count from 0. `prompt`: the layers that receive trained vectors.
        """
        return None

    @property
    def trains_lm(self) -> bool:
        """Whether weights of the LM itself are trained."""
        return False

    @property
    def trains_encoders(self) -> bool:
        """Whether weights of the encoders are trained: then features change with every step and are never cached."""
        return False

    def set_statistics(self, modality: str, mean: Tensor, std: Tensor) -> None:
        """Set the feature statistics (n_levels, dim) of the training split, for methods that standardise."""

    @property
    def standardizes(self) -> bool:
        """Whether `set_statistics` must be called before training."""
        return False

    @property
    def starts_from_answers(self) -> bool:
        """Whether connections are fitted to the LM's states of the training answers before the first step."""
        return False

    def auxiliary_group(self) -> tuple[nn.Module, float] | None:
        """Return a module used only while training, which is trained with the method, and its constant learning rate.

        It is not a submodule: neither saved with the method nor counted. A checkpoint stores it with the optimizer.
        """
        return None

    def prompt_group(self) -> Sequence[nn.Module | nn.Parameter]:
        """Return the parts that act without any medium (prompt, adapters): the optimizer's constant-rate group."""
        return ()

    def unfrozen_group(self) -> Mapping[str, tuple[nn.Module, float]]:
        """Return the parts of the base models that are trained, with a constant learning rate each: separate groups."""
        return {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Group named parameters for the optimizer: `connector` (scheduled), `prompt` (its own rate), `unfrozen_group`.

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
    """Count the parameters of a module: tied weights once, quantised weights by their unquantised shape.

    `without` excludes parameters that another module shares.
    """
    others = set() if without is None else {id(parameter) for parameter in without.parameters()}
    own = [parameter for parameter in module.parameters() if id(parameter) not in others]
    return sum(math.prod(getattr(getattr(p, "quant_state", None), "shape", p.shape)) for p in own)


def count_trained(method: nn.Module) -> int:
    """Count the parameters of a method that are trained, i.e. not frozen by `train.freeze`."""
    return sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
