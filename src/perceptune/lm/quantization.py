"""Quantisation of a frozen LM to 8 or 4 bits (bitsandbytes); trained weights stay in float32.

The embedding and the vocabulary head keep their dtype. 8 bits: LLM.int8() with outlier columns, which depend on the
whole batch, so a batch equals each row alone up to rounding only. 4 bits: NF4 in blocks of 64.
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
    """Load a model of a transformers class with all of its weights, quantised as `lm.quantization` says.

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
    """Return the additional arguments of `from_pretrained`; none without `lm.quantization`.

    `skip` are names of modules that keep their dtype; by default transformers excludes the vocabulary head.
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

    # It warns at each product that it computes in float16 inside, which is expected.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    eight = config.quantization == "8bit"
    bits = BitsAndBytesConfig(
        load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip) or None,
    )  # fmt: skip
    return {"quantization_config": bits, "device_map": {"": default_device()}}


def keep_differentiable(model: nn.Module) -> None:
    """Keep the layout of 4-bit weights: on some CPUs a forward without gradient would change it to one that has none.

    Training would then continue without learning anything.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
