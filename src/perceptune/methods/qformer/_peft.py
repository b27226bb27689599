"""PEFT layers inside a Q-Former."""

import warnings
from collections.abc import Mapping
from typing import Any

from perceptune.errors import UserError
from perceptune.lm.frozen_blip import FrozenBlip
from perceptune.methods.parts.peft_layers import as_user_error, linear_maps, peft_config
from perceptune.methods.parts.unfrozen import UnfrozenParameters


def config_of(given: Mapping[str, Any], key: str, blip: FrozenBlip) -> Any:
    """Return the PEFT configuration for keys of a recipe; `key` is the recipe's, for messages.

    `target_modules` defaults to queries, keys and values of all attentions. Raises `UserError`.
    """
    from perceptune.methods.dma import QFORMER_ATTENTION

    return peft_config({"target_modules": QFORMER_ATTENTION, **given}, key, linear_maps(blip.qformer))


def wrapped(blip: FrozenBlip, config: Any) -> tuple[UnfrozenParameters, Any]:
    r"""Apply a PEFT configuration to the Q-Former; return the tensors it trains, for the method, and the `PeftModel`.

    `target_modules` are names inside the Q-Former, such as `.*attention\.attention\.query`. The `PeftModel`, which
    merging needs, must not become a submodule of the method. Raises `UserError` for a configuration that is invalid or
    trains weights of the Q-Former itself.
    """
    from peft import get_peft_model

    before = {id(parameter) for parameter in blip.model.parameters()}
    with as_user_error("method: PEFT refuses: "), warnings.catch_warnings():
        # PEFT imports a name that transformers has removed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        peft_model: Any = get_peft_model(blip.qformer, config)
    trained = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    if any(id(parameter) in before for parameter in trained.values()):
        raise UserError("method: these PEFT settings train weights of the Q-Former itself (`bias`): use `full`")
    _share_products(blip.qformer)
    return UnfrozenParameters("PEFT's part", trained.items()), peft_model


def _share_products(qformer: Any) -> None:
    """Let DMA layers with a common input (the image: all keys and values) compute U x once per pass."""
    from perceptune.methods.dma import DMALinear

    products: dict[Any, Any] = {}
    for part in qformer.modules():
        if isinstance(part, DMALinear):
            part.products = products

    def emptied(*_: Any) -> None:
        products.clear()

    qformer.register_forward_hook(emptied, always_call=True)
