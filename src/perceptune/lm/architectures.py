"""Where the decoder LMs of transformers keep their parts."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perceptune.errors import UserError
from perceptune.utils.tensors import bytes_of

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
# Where what these maps end begins: the module that is given the block's normalised states.
ENTRANCES = {"attention": ("self_attn", "attn", "attention", "self_attention"), "mlp": ("mlp", "fc1")}


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


def require_site(layer: nn.Module, kind: str, places: Mapping[str, Sequence[str]], where: str) -> tuple[str, nn.Module]:
    """Path inside a block, and module, of the linear map that ends attention (`attention`) or the MLP (`mlp`).

    `places` is `SITES`; with `ENTRANCES`, of the module that it begins with. Raises `UserError` saying what was tried.
    """
    for path in places[kind]:
        with contextlib.suppress(AttributeError):
            return path, layer.get_submodule(path)
    what, tried = "output" if places is SITES else "input", ", ".join(f"`{path}`" for path in places[kind])
    raise UserError(f"no {kind} {what} found in {where}: tried {tried}")


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


def weights_fingerprint(model: nn.Module) -> str:
    """Over the shape and up to 1,024 evenly spaced values of each weight, rounded to bfloat16.

    Sampled, because hashing tens of gigabytes at each start would take longer than answering; rounded, so that a base
    loaded in bfloat16 is recognised as the same; without names, which transformers changes now and then. Quantised
    weights are left out: how they lie in memory differs from machine to machine.
    """
    digests = []
    for tensor in filter(torch.is_floating_point, model.parameters()):
        data = bytes_of(tensor, most=1024, dtype=torch.bfloat16)
        digests.append(hashlib.sha256(repr(tuple(tensor.shape)).encode() + data).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


@dataclass(frozen=True)
class Capabilities:
    """What an LM can do, as `probe` finds out."""

    has_bare_head: bool = False  # logits are the output of the vocabulary head as it is
    split_disabled_reason: str | None = None  # why every pass runs the reference path; None if it need not
