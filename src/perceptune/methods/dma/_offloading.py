"""Models whose weights accelerate keeps elsewhere: the factors of DMA are never offloaded with them.

accelerate brings weights back before the `forward` of the module that holds them. Factors lie in containers, which
have none.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn


def device_of(base: nn.Module, model: nn.Module) -> torch.device:
    """Return the device for the factors of a frozen map: that of its weight, or where an offloaded one is computed."""
    weight: Any = base.weight
    if not weight.is_meta:
        return weight.device
    if (device := _execution_device(base)) is not None:
        return device
    # PEFT takes the hooks off while it loads an adapter, and dispatches the whole model after that.
    return torch.device("cpu") if is_dispatched(model) else weight.device


def is_dispatched(model: nn.Module) -> bool:
    """Return whether accelerate has spread the model over devices."""
    return getattr(model, "hf_device_map", None) is not None


def bring_back(tuner: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Undo the offloading of containers by giving their parameters the values that were loaded, by full name."""
    for name, container in tuner.named_modules():
        if not isinstance(container, nn.ParameterDict) or not hasattr(container, "_hf_hook"):
            continue
        device = _execution_device(container) or torch.device("cpu")
        for adapter, parameter in container.items():
            value = loaded.get(f"base_model.{name}.{adapter}")
            if parameter.is_meta and value is not None:
                container[adapter] = nn.Parameter(value.to(device, parameter.dtype), parameter.requires_grad)
        remove_hook_from_module(container)


def _execution_device(module: nn.Module) -> torch.device | None:
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # accelerate may chain them
        if getattr(one, "execution_device", None) is not None:
            return torch.device(one.execution_device)
    return None
