"""The PEFT tuner that puts DMA adapters on a model."""

from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from perceptune.errors import nearest
from perceptune.methods.dma._combination import combined_config, fill
from perceptune.methods.dma._errors import DMAError
from perceptune.methods.dma._mixed_batches import adapter_by_row
from perceptune.methods.dma._offloading import bring_back, device_of, is_dispatched
from perceptune.methods.dma._targets import base_of, check_groups, group_of, rank_of, require_targets, shared_weight
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
    target_module_mapping: Any = ChainMap(  # noqa: RUF012 - PEFT's own attribute, and its table as it is by then
        dict.fromkeys(INSTRUCTBLIP, QFORMER_ATTENTION), TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Iterator[None]:
        with nullcontext() if adapter_names is None else adapter_by_row(self, adapter_names, kwargs):
            yield

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Inject the adapter as PEFT does, and keep whether the shared factors of other adapters are trainable."""
        containers = {id(one): one for layer in layers_of(model).values() for one in layer.containers()}.values()
        before = [(one[name], one[name].requires_grad) for one in containers for name in one if name != adapter_name]
        self.__dict__["_injected"] = adapter_name  # for `_prepare_model`: two adapters may have one configuration
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for parameter, required in before:
            parameter.requires_grad_(required)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Add adapters to the frozen weights, which are kept in memory until `unmerge_adapter`.

        Raises `DMAError` before anything is changed if one of them cannot be merged.
        """
        self._require_mergeable(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "svd",
        svd_rank: int | None = None,
    ) -> None:  # fmt: skip
        """Add the weighted sum of adapters as a frozen adapter, as PEFT's LoRA does.

        `cat` is exact; the ranks add up. `svd` has `svd_rank`, by default the largest rank of the adapters, and is the
        best that a truncated higher-order SVD gives. One adapter is scaled exactly. Raises `DMAError` for other types
        and for adapters that cannot be summed.
        """
        known: Any = self.peft_config
        if missing := [name for name in adapters if name not in known]:
            raise DMAError(f"Adapter {missing[0]} does not exist{nearest(missing[0], known)}")
        if adapter_name in known:
            raise DMAError(f"Adapter {adapter_name} exists already: delete it, or take another name")
        kind = "cat" if len(adapters) == 1 else combination_type
        configs = {name: known[name] for name in adapters}
        known[adapter_name] = combined_config(configs, weights, kind, svd_rank, layers_of(self.model))
        self.inject_adapter(self.model, adapter_name)
        groups: dict[str, list[DMALinear]] = {}
        for layer in layers_of(self.model).values():
            if adapter_name in layer.dma_p:
                groups.setdefault(layer.group, []).append(layer)
        for layers in groups.values():
            fill(layers, adapter_name, dict(zip(adapters, weights, strict=True)), kind)
        self.set_requires_grad(adapter_name, False)

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
        layers = layers_of(self.model)
        for name, layer in layers.items():
            if reason := layer.why_not_mergeable(adapter_names or self.active_adapters):
                raise DMAError(f"DMA cannot be merged into `{name}`: {reason}")
        if found := shared_weight(self.model, layers):
            raise DMAError(
                f"DMA cannot be merged into `{found[0]}`: its weight is `{found[1]}`'s, too, and would change there: "
                "load the model with `tie_word_embeddings=False` and a copy of the weight"
            )

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules is None:
            known = self.target_module_mapping.get(model_config.get("model_type", ""))
            if known is None:
                raise DMAError(
                    "DMAConfig: Please specify `target_modules` for a model of type "
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
        self._take_over(self.__dict__["_injected"])

    def _take_over(self, adapter: str) -> None:
        """Own what an earlier tuner of this model has shared among its layers; this adapter of it is replaced.

        Raises `DMAError` if that adapter is merged.
        """
        layers = layers_of(self.model).values()
        if any(adapter in layer.merged_adapters for layer in layers):
            raise DMAError(
                f"the model's adapter `{adapter}` is merged into its weights and would be lost: call "
                "`unmerge_adapter()`, or `merge_and_unload()` to keep it, before you adapt the model again"
            )
        for layer in layers:
            layer.forget(adapter)
            for kind in Factors._fields:
                self.add_module(f"{self.prefix}{kind}_{layer.group}", getattr(layer, f"dma_{kind}"))

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        others: Any = self.peft_config
        for name, other in others.items():
            if other.groups != config.groups:
                raise DMAError(f"DMAConfig: `groups` are {config.groups}, but adapter `{name}` has {other.groups}")

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        if isinstance(target, DMALinear) and target.dma_p:
            group = target.group  # one for all adapters of a layer
        else:
            group = group_of(peft_config, current_key, base_of(target))
        factors, r = self._factors(group), rank_of(peft_config, current_key)
        device = device_of(base_of(target), self.model)
        layer = target
        if not isinstance(layer, DMALinear):
            layer = DMALinear(target, group, factors).train(self.training)  # else dropout acts in evaluation
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, group, factors, peft_config, r, device)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module. PEFT would move factors to the weight's device, for an offloaded one to none."""
        setattr(parent, child_name, new_module)

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

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Name tensors as the model does, and keep them until `_cast_adapter_dtype` if it may be offloaded before."""
        named = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        if is_dispatched(model):
            model.base_model.__dict__["_loaded"] = named
        return named

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Train in float32 beside a model in 16 bits, as PEFT does; includes the shared factors."""
        bring_back(self, self.__dict__.pop("_loaded", {}))
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for container in self._containers() if autocast_adapter_dtype else ():
            if adapter_name in container and container[adapter_name].dtype in (torch.float16, torch.bfloat16):
                required = container[adapter_name].requires_grad
                container[adapter_name] = nn.Parameter(container[adapter_name].float(), required)


def layers_of(model: nn.Module) -> dict[str, DMALinear]:
    """Return the layers of DMA in a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, DMALinear)}
