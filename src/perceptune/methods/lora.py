"""LoRA, or any other PEFT configuration on the LM, with one connection at the input: an outside baseline.

`peft: {peft_type: LORA, r: 8, target_modules: [q_proj, v_proj]}` holds the keys of that PEFT type's configuration. The
layers that PEFT makes are the method's own; the LM's tree keeps its frozen modules, so its weights and their names stay
as they are: an attribute beside each targeted module leads the block's own code through PEFT's layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from pydantic import Field
from torch import nn

from perceptune.errors import UserError, nearest
from perceptune.lm import FrozenLM
from perceptune.methods.base import EncoderShape, Injection, InjectionOptions, Site

VARIANTS: dict[str, dict[str, Any]] = {"lora": {"n_levels": 1, "first": 0, "last": 0, "prompt": "none"}}
DEFAULT_TYPE = "LORA"
ALL_LINEAR = "all-linear"


class LoRAOptions(InjectionOptions):
    """Those of every injecting method, and PEFT's."""

    peft: dict[str, Any] = Field(
        default_factory=lambda: {"peft_type": DEFAULT_TYPE},
        description="keys of a PEFT configuration; `target_modules` inside the LM's blocks, None = PEFT's choice",
    )


class LoRA(Injection):
    """Layers of PEFT beside linear maps of the LM's blocks."""

    Options = LoRAOptions

    def __init__(self, options: LoRAOptions, lm: FrozenLM, shapes: Mapping[str, EncoderShape]) -> None:
        super().__init__(options, lm, shapes)
        self._kind, found = _peft_layers(lm, options.peft)
        self.peft = nn.ModuleDict({name.replace(".", "/"): layer for name, layer in found.items()})
        start = len(lm.layers_path) + 1
        self._places = [(int(name[start:].partition(".")[0]), name) for name in found]

    def attach(self, lm: FrozenLM) -> None:
        super().attach(lm)
        for name, layer in self.peft.items():
            parent, _, child = name.replace("/", ".").rpartition(".")
            # Found before the submodule of that name, which stays where it is.
            lm.model.get_submodule(parent).__dict__[child] = layer

    @property
    def first_layer(self) -> int:
        return min(super().first_layer, *(layer for layer, _ in self._places))

    def text_side(self) -> Sequence[nn.Module | nn.Parameter]:
        return [*super().text_side(), self.peft]

    def sites(self) -> list[Site]:
        return super().sites() + [Site(layer, name, f"{self._kind} of PEFT") for layer, name in self._places]


METHOD = LoRA


def _peft_layers(lm: FrozenLM, given: Mapping[str, Any]) -> tuple[str, dict[str, nn.Module]]:
    """Name of the PEFT type, and its layers by the name of the module each stands for; the LM is left as it was.

    A layer reaches its frozen module as `base_layer` without owning it. Raises `UserError` for a configuration that is
    none of PEFT's or does more than to add layers inside the blocks.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = _config(lm, given)
    kind, before = str(config.peft_type.value), _places_of(lm)
    try:
        inject_adapter_in_model(config, lm.model)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"method.peft: {' '.join(str(error).split())}") from error
    layers = {
        name: cast(Any, module) for name, module in lm.model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(lm.model.get_submodule(parent), child, layer.base_layer)
        layer.__dict__["base_layer"] = layer._modules.pop("base_layer")
        layer.float()
    vars(lm.model).pop("peft_config", None)
    for name, layer in layers.items():
        _require_usable(lm, kind, name, layer)
    if _places_of(lm) != before:
        raise UserError(f"method.peft: {kind} with these settings changes the frozen weights or their layout")
    if any(parameter.requires_grad for parameter in lm.model.parameters()):
        raise UserError("method.peft: these settings train weights of the LM itself (`bias`): use `method.unfreeze`")
    return kind, layers


def _require_usable(lm: FrozenLM, kind: str, name: str, layer: nn.Module) -> None:
    if not name.startswith(f"{lm.layers_path}."):
        raise UserError(f"method.peft.target_modules: `{name}` is not inside the LM's blocks (`{lm.layers_path}`)")
    parent = lm.model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise UserError(f"method.peft.target_modules: `{name}` lies in a container, where it cannot be led around")
    if not all(parameter.requires_grad for parameter in layer.parameters()):
        raise UserError(f"method.peft: {kind} has parameters of its own that are not trained")


def _places_of(lm: FrozenLM) -> list[tuple[str, int, int]]:
    """Name, address and version of each weight: what changes when one is replaced or written to."""
    return [(name, p.data_ptr(), p._version) for name, p in lm.model.named_parameters()]


def _config(lm: FrozenLM, given: Mapping[str, Any]) -> Any:
    """The PEFT configuration that the keys stand for."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers.pytorch_utils import Conv1D

    classes = {kind.value: made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    keys = {"peft_type": DEFAULT_TYPE, **given}
    kind = str(keys.pop("peft_type")).upper()
    if kind not in classes:
        raise UserError(f"method.peft.peft_type: PEFT has no `{kind}`{nearest(kind, classes)}")
    known = {field.name for field in fields(classes[kind])}
    for key in keys:
        if key not in known:
            raise UserError(f"method.peft: {kind} has no key `{key}`{nearest(key, known)}")
    linear = _linear_maps(lm)
    if keys.get("target_modules") == ALL_LINEAR:
        keys["target_modules"] = sorted(linear)
    # GPT-2 keeps its weights the other way round.
    if "fan_in_fan_out" in known and any(issubclass(made, Conv1D) for made in linear.values()):
        keys.setdefault("fan_in_fan_out", True)
    try:
        return classes[kind](**keys)
    except (ValueError, TypeError) as error:
        raise UserError(f"method.peft: {' '.join(str(error).split())}") from error


def _linear_maps(lm: FrozenLM) -> dict[str, type[nn.Module]]:
    """Paths inside a block of its linear maps, and their classes."""
    from transformers.pytorch_utils import Conv1D

    return {
        path: type(module)
        for layer in lm.layers
        for path, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
