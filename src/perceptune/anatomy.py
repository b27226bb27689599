"""Where the decoder LMs of transformers keep their parts."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from perceptune.errors import UserError

# Decoder blocks, most common place first.
LAYER_PATHS = (
    "model.layers",  # Llama, SmolLM, Qwen, Gemma, Mistral, Phi
    "model.decoder.layers",  # OPT
    "transformer.h",  # GPT-2, GPT-J, BLOOM
    "gpt_neox.layers",  # GPT-NeoX, Pythia
    "model.language_model.layers",  # the text part of multimodal checkpoints
)
# Inside a block: the linear map that ends attention and the one that ends the feed-forward part, before the residual.
SITES = {
    "attention": ("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj",
                  "attention.dense", "self_attention.dense"),
    "mlp": ("mlp.down_proj", "fc2", "mlp.c_proj", "mlp.fc2", "mlp.fc_out", "mlp.dense_4h_to_h"),
}  # fmt: skip


def find_layers(model: nn.Module, override: str | None) -> str:
    """Dotted path of the decoder blocks. Raises `UserError` listing what was tried."""
    paths = (override,) if override else LAYER_PATHS
    for path in paths:
        with contextlib.suppress(AttributeError):
            found = model.get_submodule(path)
            if isinstance(found, nn.ModuleList) and len(found) > 0:
                return path
    lists = [f"`{name}`" for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    raise UserError(
        f"no decoder layers found in {type(model).__name__}: tried {', '.join(f'`{p}`' for p in paths)}; "
        f"set `lm.layers` to one of its module lists: {', '.join(lists) or 'it has none'}"
    )


def find_site(layer: nn.Module, kind: str) -> tuple[str, nn.Module] | None:
    """Path inside a block, and module, of the linear map that ends attention (`attention`) or the MLP (`mlp`)."""
    for path in SITES[kind]:
        with contextlib.suppress(AttributeError):
            return path, layer.get_submodule(path)
    return None


def attention_for(config: Any, wanted: str) -> str:
    """The attention to load an LM with: `wanted`, or `eager` where its class in transformers knows no `sdpa`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if wanted != "sdpa" or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return wanted
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if model._supports_sdpa else "eager"


def require_mask_attention(config: Any) -> None:
    """Slots are opened in a 4-D mask, which only sdpa and eager attention read."""
    attention = getattr(config, "_attn_implementation", "eager")
    if attention not in ("sdpa", "eager", None):
        raise UserError(f"attention `{attention}` cannot be spliced; load the LM with `sdpa` or `eager`")
