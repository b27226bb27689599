"""A frozen LM's weights in 8 or 4 bits (bitsandbytes): what is trained stays in float32 beside them.

The embedding and the vocabulary head keep their dtype. 8 bits: LLM.int8(), outlying columns apart; which columns those
are depends on the whole batch, so a batch equals each row alone up to rounding only. 4 bits: NF4 in blocks of 64.
"""

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from perceptune.config.schema import LMConfig
from perceptune.errors import UserError
from perceptune.utils.devices import default_device
from perceptune.utils.transformers_loading import require_all_weights


def load_frozen(
    kind: Any, config: LMConfig, where: str, compute_dtype: torch.dtype, *, skip: Sequence[str] = (), **given: Any
) -> Any:
    """A model of one of transformers' classes with all of its weights, quantised where `lm.quantization` asks for it.

    `skip` as in `quantization`; `given` are arguments of `from_pretrained`. Raises `UserError` for incomplete weights.
    """
    model, info = kind.from_pretrained(
        where, revision=config.revision, output_loading_info=True, ignore_mismatched_sizes=True, **given,
        **quantization(config, compute_dtype, skip=skip),
    )  # fmt: skip
    require_all_weights(f"lm `{config.id}`", info)
    keep_differentiable(model)
    return model


def quantization(config: LMConfig, dtype: torch.dtype, *, skip: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of `from_pretrained` beside the usual ones; none without `lm.quantization`.

    `skip` are names of modules that keep their dtype; without any transformers leaves out the vocabulary head.
    Raises `UserError` without bitsandbytes.
    """
    if config.quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"lm.quantization `{config.quantization}` needs bitsandbytes, which is not installed: "
            "pip install 'perceptune[quantized]'"
        )
    from transformers import BitsAndBytesConfig

    # It says at each product that it computes in float16 inside: that is known, and is what was asked for.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    eight = config.quantization == "8bit"
    bits = BitsAndBytesConfig(
        load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip) or None,
    )  # fmt: skip
    return {"quantization_config": bits, "device_map": {"": default_device()}}


def keep_differentiable(model: nn.Module) -> None:
    """Keeps 4-bit weights as they were loaded: on some CPUs the first forward without gradient would lay them out for
    a product that has none, and a training would go on without learning anything."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
