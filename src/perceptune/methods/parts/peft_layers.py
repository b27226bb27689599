"""PEFT layers beside linear maps of frozen models, owned by the method.

A model's module tree keeps its frozen modules, so its weights and their names do not change: an attribute beside
each targeted module makes the model's own code call PEFT's layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

from torch import nn

from perceptune.errors import UserError, error_prefix, nearest

DEFAULT_TYPE = "LORA"


ALL_LINEAR = "all-linear"


class PeftLayers(nn.ModuleDict):
    """PEFT's layers by the name of the module each replaces, `/` for `.`, and their shared parts by their own names.

    `linear` are the names, or ends of names, that `all-linear` stands for; `key` is the recipe's, for messages.
    A layer refers to its frozen module as `base_layer` without owning it. Raises `UserError` for a configuration that
    PEFT does not have or that does more than add layers; the model is then unchanged.
    """

    def __init__(
        self, model: nn.Module, given: Mapping[str, Any], key: str, linear: Mapping[str, type[nn.Module]]
    ) -> None:
        super().__init__()
        config, before = peft_config(given, key, linear), _places_of(model)
        self.kind = str(config.peft_type.value)
        with error_prefix(key):
            shared = _inject(config, model)
        from peft.tuners.tuners_utils import BaseTunerLayer

        found = {
            name: cast(Any, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
        }
        self._led: list[tuple[nn.Module, str, str]] = []  # parent, its attribute, name
        for name, layer in found.items():
            path, _, child = name.rpartition(".")
            parent = model.get_submodule(path)
            setattr(parent, child, layer.base_layer)
            layer.__dict__["base_layer"] = layer._modules.pop("base_layer")
            self[name.replace(".", "/")] = layer.float()
            self._led.append((parent, child, name))
        self.update({name: module.float() for name, module in shared.items()})
        vars(model).pop("peft_config", None)
        self._require_usable(model, key, before)

    @property
    def names(self) -> list[str]:
        """Names of the replaced modules."""
        return [name for _, _, name in self._led]

    def attach(self) -> None:
        """Make the model's code call the layers."""
        for parent, child, name in self._led:
            # Attribute lookup finds it before the submodule of that name, which stays in the tree.
            parent.__dict__[child] = self[name.replace(".", "/")]

    def _require_usable(self, model: nn.Module, key: str, before: list[tuple[str, int, int]]) -> None:
        for parent, _, name in self._led:
            if isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict):
                raise UserError(f"{key}.target_modules: `{name}` lies in a container, where it cannot be led around")
        if not all(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(f"{key}: {self.kind} has parameters of its own that are not trained")
        if _places_of(model) != before:
            raise UserError(f"{key}: {self.kind} with these settings changes the frozen weights or their layout")
        if any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"{key}: these settings train weights of the LM itself (`bias`): use `method.unfreeze`")


def linear_maps(module: nn.Module) -> dict[str, type[nn.Module]]:
    """Return the paths inside a module of its linear maps, and their classes."""
    from transformers.pytorch_utils import Conv1D

    return {path: type(part) for path, part in module.named_modules() if isinstance(part, nn.Linear | Conv1D)}


def _inject(config: Any, model: nn.Module) -> dict[str, nn.Module]:
    """Replace the targeted modules by PEFT's layers; return the parts that the layers share."""
    from peft import inject_adapter_in_model
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    from perceptune.methods.dma import DMAModel

    with as_user_error():
        if PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type) is not DMAModel:
            inject_adapter_in_model(config, model)
            return {}
        tuner = DMAModel(model, config, "default")
    return {name: part for name, part in tuner.named_children() if part is not model and len(cast(Any, part))}


@contextmanager
def as_user_error(where: str = "") -> Iterator[None]:
    """Convert PEFT's error for an unusable configuration into a one-line `UserError` that starts with `where`."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UserError(where + " ".join(str(error).split())) from error


def _places_of(model: nn.Module) -> list[tuple[str, int, int]]:
    """Return name, address and version of each weight, which change when it is replaced or written to."""
    return [(name, p.data_ptr(), p._version) for name, p in model.named_parameters()]


def peft_config(given: Mapping[str, Any], key: str, linear: Mapping[str, type[nn.Module]]) -> Any:
    """Return the PEFT configuration for the keys `given`; `linear` as in `PeftLayers`. Raises `UserError`."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers.pytorch_utils import Conv1D

    import perceptune.methods.dma  # noqa: F401 - makes DMA one of the types

    classes = {kind.value: made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    keys = {"peft_type": DEFAULT_TYPE, **given}
    kind = str(keys.pop("peft_type")).upper()
    if kind not in classes:
        raise UserError(f"{key}.peft_type: PEFT has no `{kind}`{nearest(kind, classes)}")
    known = {field.name for field in fields(classes[kind])}
    for name in keys:
        if name not in known:
            raise UserError(f"{key}: {kind} has no key `{name}`{nearest(name, known)}")
    if keys.get("target_modules") == ALL_LINEAR:
        keys["target_modules"] = sorted(linear)
    # GPT-2 stores its weights transposed.
    if "fan_in_fan_out" in known and any(issubclass(made, Conv1D) for made in linear.values()):
        keys.setdefault("fan_in_fan_out", True)
    try:
        with error_prefix(key):
            return classes[kind](**keys)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from error
