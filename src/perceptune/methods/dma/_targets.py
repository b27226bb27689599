"""Selection of the modules that DMA adapters go on, and of the groups that share factors; validates all of it first."""

import copy
import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import resolve_quantization_backend
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from perceptune.errors import nearest
from perceptune.methods.dma._errors import DMAError, NoTargetError
from perceptune.methods.dma.config import DMAConfig

SUPPORTED = (nn.Linear, Conv1D)  # the quantised maps of bitsandbytes are nn.Linear, too


def require_targets(config: DMAConfig, model: nn.Module, tuner_layer: type[nn.Module]) -> dict[str, nn.Module]:
    """Return the targeted linear maps by name, without adapters around them.

    Raises `DMAError` if there are none, if an entry of a list matches none, or if one is not a linear map that DMA
    supports; the model is then unchanged.
    """
    modules = dict(_outside_adapters(model))
    linear = [name for name, module in modules.items() if isinstance(module, (*SUPPORTED, tuner_layer))]
    wanted = config.target_modules
    for entry in [] if isinstance(wanted, str) else sorted(wanted or ()):
        if not any(name == entry or name.endswith(f".{entry}") for name in modules):
            raise NoTargetError(f"target_modules: the model has no module `{entry}`{_hint(entry, linear)}")
    found = {name: module for name, module in modules.items() if name and check_target_module_exists(config, name)}
    if not found:
        raise _no_target(config, modules, linear)
    for name, module in found.items():
        if not isinstance(module, (*SUPPORTED, tuner_layer)):
            raise DMAError(
                f"target_modules: `{name}` is {_a(module)}: DMA goes on nn.Linear and transformers' Conv1D"
                f"{_hint(name, linear)}"
            )
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise DMAError(
                f"target_modules: `{name}` is part of torch's MultiheadAttention, which takes its weight and never "
                "calls it: a delta there would have no effect"
            )
        _require_known_quantisation(name, base_of(module))
    return {name: base_of(module) for name, module in found.items()}


def _no_target(config: DMAConfig, modules: Mapping[str, nn.Module], linear: list[str]) -> NoTargetError:
    named = copy.copy(config)
    named.exclude_modules = named.modules_to_save = None
    if count := sum(bool(name and check_target_module_exists(named, name)) for name in modules):
        key = "exclude_modules" if config.exclude_modules else "modules_to_save"
        return NoTargetError(
            f"{key}: `{getattr(config, key)}` leaves none of the {count} modules that `target_modules` names"
        )
    wanted = config.target_modules
    return NoTargetError(f"target_modules: `{wanted}` names no module of the model{_hint(str(wanted), linear)}")


def _require_known_quantisation(name: str, base: nn.Module) -> None:
    try:
        resolve_quantization_backend(base)
    except ValueError as error:
        raise DMAError(f"target_modules: `{name}` is quantised in a way that DMA cannot be put on: {error}") from error


def base_of(module: nn.Module) -> nn.Module:
    """Return the module itself, or the one it wraps."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def width_of(base: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear map."""
    n_in, n_out = base.weight.shape if isinstance(base, Conv1D) else (base.in_features, base.out_features)
    return int(n_in), int(n_out)


def group_of(config: DMAConfig, name: str, base: nn.Module) -> str:
    """Return the name of the group whose factors this linear map shares."""
    shape = "x".join(map(str, width_of(base)))
    for group, pattern in (config.groups or {}).items():
        if re.fullmatch(pattern, name):
            return f"{group}_{shape}"
    return shape


def rank_of(config: DMAConfig, name: str) -> int:
    """Return the rank of the adapter on this linear map; `rank_pattern` is matched as in PEFT's LoRA."""
    ranks = config.rank_pattern or {}
    return ranks.get(get_pattern_key(list(ranks), name), config.r)


def check_groups(config: DMAConfig, targets: Mapping[str, nn.Module]) -> None:
    """Raise `DMAError` for a group without a matrix or with two ranks; warn if sharing costs more than it saves.

    A group of n matrices costs r (in + out) + n r and its core, LoRA n r (in + out): a core of r^3 needs a large n.
    """
    for name, pattern in (config.groups or {}).items():
        if not any(re.fullmatch(pattern, target) for target in targets):
            raise DMAError(f"groups.{name}: `{pattern}` names none of the {len(targets)} targeted modules")
    first: dict[str, str] = {}
    for name, base in targets.items():
        other = first.setdefault(group_of(config, name, base), name)
        if rank_of(config, name) != rank_of(config, other):
            raise DMAError(
                f"rank_pattern: `{name}` has rank {rank_of(config, name)}, but `{other}`, with which it shares factors,"
                f" {rank_of(config, other)}: give both one rank, or separate them by `groups`"
            )
    if not config.inference_mode:
        _warn_of_costs(config, targets)


def _warn_of_costs(config: DMAConfig, targets: Mapping[str, nn.Module]) -> None:
    members = Counter(group_of(config, name, base) for name, base in targets.items())
    shapes = {group_of(config, name, base): (rank_of(config, name), width_of(base)) for name, base in targets.items()}
    for group, n in members.items():
        r, widths = shapes[group]
        core = r**3 if config.core == "tucker" else r
        cost, lora = r * sum(widths) + n * r + core, n * r * sum(widths)
        if cost > lora:
            what = "one matrix, which shares nothing" if n == 1 else f"{n} matrices"
            other = ', `core="cp"`' if config.core == "tucker" and n > 1 else ""
            warnings.warn(
                f"DMA's group {group} has {what}: {cost:,} parameters, LoRA of rank {r} would have {lora:,}; "
                f"target more matrices of this shape, or take a smaller `r`{other} or LoRA",
                stacklevel=3,
            )


def shared_weight(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[str, str] | None:
    """Return a layer whose frozen weight another module shares, and that module's name; None if there is none."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, layer in layers.items():
        others = [o for o in owners[id(base_of(layer).weight)] if not o.startswith(f"{name}.")]
        if others:
            return name, others[0].rpartition(".")[0]
    return None


def _outside_adapters(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Yield modules by name, without the insides of adapter layers."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(f"{name}.")
        yield name, module


def _hint(wanted: str, linear: list[str]) -> str:
    """Return the linear map that was probably meant: the closest full name, else the closest last part of a name."""
    if close := difflib.get_close_matches(wanted, linear, n=1, cutoff=0.6):
        return f"; did you mean `{close[0]}`?"
    return nearest(wanted.rpartition(".")[2], {name.rpartition(".")[2] for name in linear})


def _a(module: Any) -> str:
    kind = type(module).__name__
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
