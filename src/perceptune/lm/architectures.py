"""Module paths inside transformers' decoder LMs."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perceptune.errors import UserError
from perceptune.utils.tensors import bytes_of

# Decoder blocks, most common path first.
LAYER_PATHS = (
    "model.layers",  # Llama, SmolLM, Qwen, Gemma, Mistral, Phi
    "model.decoder.layers",  # OPT
    "transformer.h",  # GPT-2, GPT-J, BLOOM
    "gpt_neox.layers",  # GPT-NeoX, Pythia
    "model.language_model.layers",  # the text part of multimodal checkpoints
)
# Inside a block: the last linear map of attention and of the feed-forward part, before the residual.
SITES = {
    "attention": ("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj",
                  "attention.dense", "self_attention.dense"),
    "mlp": ("mlp.down_proj", "fc2", "mlp.c_proj", "mlp.fc2", "mlp.fc_out", "mlp.dense_4h_to_h"),
}  # fmt: skip
# The first module of the same parts, whose input is the block's normalised states.
ENTRANCES = {"attention": ("self_attn", "attn", "attention", "self_attention"), "mlp": ("mlp", "fc1")}


def find_layers(model: nn.Module, override: str | None) -> str:
    """Return the dotted path of the decoder blocks. Raises `UserError` listing what was tried."""
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


def require_site(layer: nn.Module, kind: str, places: Mapping[str, Sequence[str]], where: str) -> tuple[str, nn.Module]:
    """Return path inside a block, and module, of the last linear map of attention (`attention`) or the MLP (`mlp`).

    With `ENTRANCES` for `places` in place of `SITES`, of the first module. Raises `UserError` listing what was tried.
    """
    for path in places[kind]:
        with contextlib.suppress(AttributeError):
            return path, layer.get_submodule(path)
    what, tried = "output" if places is SITES else "input", ", ".join(f"`{path}`" for path in places[kind])
    raise UserError(f"no {kind} {what} found in {where}: tried {tried}")


def attention_for(config: Any, wanted: str) -> str:
    """Return the attention to load an LM with: `wanted`, or `eager` if its class in transformers has no `sdpa`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if wanted != "sdpa" or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return wanted
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if model._supports_sdpa else "eager"


def require_mask_attention(config: Any) -> None:
    """Raise `UserError` unless attention is sdpa or eager, the only ones that read the 4-D mask slots are opened in."""
    attention = getattr(config, "_attn_implementation", "eager")
    if attention not in ("sdpa", "eager", None):
        raise UserError(f"attention `{attention}` cannot be spliced; load the LM with `sdpa` or `eager`")


def weights_fingerprint(model: nn.Module) -> str:
    """Return a fingerprint of the shape and up to 1,024 evenly spaced values of each weight, rounded to bfloat16.

    Sampled, because hashing tens of gigabytes at each start would take longer than answering; rounded, so that a base
    loaded in bfloat16 is recognised as the same; without names, which vary between versions of transformers. Quantised
    weights are left out, as their memory layout differs between machines.
    """
    digests = []
    for tensor in filter(torch.is_floating_point, model.parameters()):
        data = bytes_of(tensor, most=1024, dtype=torch.bfloat16)
        digests.append(hashlib.sha256(repr(tuple(tensor.shape)).encode() + data).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of an LM, as `probe` finds them."""

    has_bare_head: bool = False  # logits are the unmodified output of the vocabulary head
    split_disabled_reason: str | None = None  # reason to use the reference path always; None if there is none
