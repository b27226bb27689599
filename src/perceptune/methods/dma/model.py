"""The PEFT tuner that puts DMA adapters on a model."""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from perceptune.errors import UserError
from perceptune.methods.dma._targets import base_of, check_groups, group_of, require_targets, shared_weight
from perceptune.methods.dma.config import QFORMER_ATTENTION
from perceptune.methods.dma.layer import DMALinear, Factors

INSTRUCTBLIP = ("instructblip", "instructblip_qformer", "instructblipvideo")


class DMAModel(BaseTuner):
    """Owner of the factors that matrices share: `dma_u_GROUP`, `dma_v_GROUP`, `dma_core_GROUP`, each keyed by adapter.

    The containers are flat attributes of the tuner itself, where PEFT looks them up when it saves and loads.
    """

    uses_shared_state = True
    prefix = "dma_"
    tuner_layer_cls = DMALinear
    target_module_mapping: Any = {  # noqa: RUF012 - PEFT's own attribute
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        **dict.fromkeys(INSTRUCTBLIP, QFORMER_ATTENTION),
    }

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Inject the adapter as PEFT does, and keep whether the shared factors of other adapters are trainable."""
        before = [(one, one.requires_grad) for name, one in self._shared() if name != adapter_name]
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for parameter, required in before:
            parameter.requires_grad_(required)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Add adapters to the frozen weights, which are kept in memory until `unmerge_adapter`.

        Raises `UserError` before anything is changed if one of them cannot be merged.
        """
        self._require_mergeable(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter with its factors. Raises `ValueError` for one that is unknown or merged."""
        super().delete_adapter(adapter_name)
        for container in self._containers():
            if adapter_name in container:  # the layers of its group may all have been unloaded
                del container[adapter_name]

    def _unload_and_optionally_merge(
        self, merge: bool = True, progressbar: bool = False, safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:  # fmt: skip
        if merge:
            self._require_mergeable(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _require_mergeable(self, adapter_names: list[str] | None) -> None:
        layers = {name: module for name, module in self.model.named_modules() if isinstance(module, DMALinear)}
        for name, layer in layers.items():
            if reason := layer.why_not_mergeable(adapter_names or self.active_adapters):
                raise UserError(f"DMA cannot be merged into `{name}`: {reason}")
        if found := shared_weight(self.model, layers):
            raise UserError(
                f"DMA cannot be merged into `{found[0]}`: its weight is `{found[1]}`'s, too, and would change there: "
                "load the model with `tie_word_embeddings=False` and a copy of the weight"
            )

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules is None:
            known = self.target_module_mapping.get(model_config.get("model_type", ""))
            if known is None:
                raise UserError(
                    "DMAConfig: `target_modules` is needed for a model of type "
                    f"`{model_config.get('model_type')}`: a regular expression, a list, or `all-linear`"
                )
            names = [name for name, _ in self.model.named_modules()]
            peft_config.target_modules = (
                known
                if isinstance(known, str)
                else {one for one in known if any(name == one or name.endswith(f".{one}") for name in names)}
            )
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Validate everything before PEFT replaces any module; PEFT has resolved the targets by now."""
        _maybe_include_all_linear_layers(peft_config, model)
        check_groups(peft_config, require_targets(peft_config, model, DMALinear))

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        others: Any = self.peft_config
        for name, other in others.items():
            if other.groups != config.groups:
                raise UserError(f"DMAConfig: `groups` are {config.groups}, but adapter `{name}` has {other.groups}")

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        factors = self._factors(group_of(peft_config, current_key, base_of(target)))
        if isinstance(target, DMALinear):
            target.update_layer(adapter_name, factors, peft_config)
            return
        layer = DMALinear(target, factors)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, factors, peft_config)
        self._replace_module(parent, target_name, layer, target)

    def _factors(self, group: str) -> Factors:
        """Return the factors of a group, empty ones if it is new."""
        found = {}
        for kind in Factors._fields:
            name = f"{self.prefix}{kind}_{group}"
            if name not in self._modules:  # `getattr` on the tuner falls through to the model
                self.add_module(name, nn.ParameterDict())
            found[kind] = self._modules[name]
        return Factors(**found)  # type: ignore[arg-type]

    def _containers(self) -> Iterator[nn.ParameterDict]:
        for name, module in self.named_children():
            if name.startswith(self.prefix) and isinstance(module, nn.ParameterDict):
                yield module

    def _shared(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the shared parameters with the names of their adapters."""
        for container in self._containers():
            yield from container.items()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Train in float32 beside a model in 16 bits, as PEFT does; includes the shared factors."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for container in self._containers() if autocast_adapter_dtype else ():
            if adapter_name in container and container[adapter_name].dtype in (torch.float16, torch.bfloat16):
                required = container[adapter_name].requires_grad
                container[adapter_name] = nn.Parameter(container[adapter_name].float(), required)
