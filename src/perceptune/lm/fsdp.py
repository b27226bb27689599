"""FSDP for the frozen LM: each process holds a shard of its weights and gathers a block when it runs.

Frozen weights have no gradient, so they are only ever gathered. The method stays whole on every process. All
processes must run the same blocks equally often, in the same order, forward and backward.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.lm.architectures import Capabilities
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.utils.fsdp_settings import FSDPSettings


def shard(lm: FrozenLM, settings: FSDPSettings, first_layer: int, device: torch.device) -> None:
    """Shard an LM in place, block by block, and move it to the device.

    Backward passes reach down to `first_layer` in every batch, whatever media it has.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    if getattr(lm.model, "is_quantized", False):
        raise UserError("accelerate: FSDP cannot share out an LM with `lm.quantization`: choose one of the two")
    options: dict[str, Any] = {
        "mesh": dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),)),
        "reshard_after_forward": settings.reshard_after_forward,
        "mp_policy": MixedPrecisionPolicy(param_dtype=settings.param_dtype),
    }
    if settings.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy()
    # A method calls `project_prompt` outside the LM's forward pass, which needs whole weights.
    whole = {p for name, p in lm.model.named_parameters() if "project_in" in name.split(".")}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for layer in lm.layers:
        fully_shard(layer, **options)
    fully_shard(lm.model, ignored_params=whole, **options)
    lm.layers[first_layer].register_forward_pre_hook(_with_gradient(), with_kwargs=True)
    # Our generation loop ends with a process's own rows: the other processes would wait for it inside the LM.
    lm.capabilities = Capabilities(split_disabled_reason="its weights are spread over several processes (FSDP)")


def _with_gradient() -> Callable[..., Any]:
    """Return a pre-hook that makes a block take part in every backward pass.

    Otherwise a process whose rows have no media would not gather weights there, while the others wait for it.
    """

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return None
        if args:
            return (_tracked(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _tracked(kwargs["hidden_states"])}

    return before


def _tracked(hidden: Tensor) -> Tensor:
    return hidden if hidden.requires_grad else hidden.detach().requires_grad_()
