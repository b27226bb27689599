"""LoRA adapters of PEFT as base LMs: their checks, and merging them into their base."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.lm.architectures import weights_fingerprint
from perceptune.models.model_folders import describe_adapter, merging_advice, read_adapter_config
from perceptune.utils.tensors import bytes_of

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_EMBEDDING = re.compile(r"\.(embed_tokens|wte|embed_in|word_embeddings)(\.base_layer|\.modules_to_save)?\.weight$")
PREFIX = "base_model.model."  # of names in PEFT's files
# They add nothing to the weights, so that there is nothing to merge.
_PROMPTS = {"ADAPTION_PROMPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "CARTRIDGE"}
# Settings that decide what a merge computes, apart from the tensors; None and empty ones are those of old files.
_SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out")


def require_lora(name: str, folder: Path) -> dict[str, Any]:
    """Return the config of a LoRA adapter of a causal LM. Raises `UserError` for any other, and without weights."""
    about = read_adapter_config(folder)
    kind, task = str(about.get("peft_type") or "PEFT"), about.get("task_type")
    what = f"`{name}` is {describe_adapter(about)}"
    if kind in _PROMPTS:
        raise UserError(f"{what}, which has no weights to merge: name its base, or a LoRA adapter")
    if kind != "LORA":
        raise UserError(f"{what}, and only LoRA is merged here: {merging_advice(folder)}")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{what} for the task {task}: name an adapter of a causal LM (CAUSAL_LM)")
    if about.get("alora_invocation_tokens"):
        raise UserError(f"{what} that acts on part of a text (activated LoRA) and cannot be merged: name its base")
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise UserError(f"`{name}`: the adapter has no weights ({' or '.join(WEIGHTS)}); copy them there")
    return about


def vocabulary_rows(folder: Path) -> int | None:
    """Return the rows of the embedding that an adapter stores; None if it leaves its base's as it is."""
    return next((len(tensor) for name, tensor in _read(folder).items() if _EMBEDDING.search(name)), None)


def merge_lora(name: str, folder: Path, base: nn.Module) -> tuple[nn.Module, str]:
    """Return the base LM in float32 with an adapter merged into its weights, and the fingerprint of both.

    The fingerprint is not that of the merged weights, whose last bits depend on the machine.
    Raises `UserError` unless each tensor of the adapter has its place in the base.
    """
    from peft import PeftConfig, PeftModel

    fingerprint = _fingerprint(require_lora(name, folder), _read(folder), base)
    rows, embedding = vocabulary_rows(folder), cast(Any, base).get_input_embeddings()
    if rows not in (None, len(embedding.weight)):
        cast(Any, base).resize_token_embeddings(rows, mean_resizing=False)
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    with warnings.catch_warnings(action="ignore"):  # PEFT asks for deprecated names; `_require_places` is strict
        adapted: Any = PeftModel(cast(Any, base), config)
    _require_places(name, folder, adapted)
    adapted.load_adapter(str(folder), "default", torch_device="cpu")
    return adapted.merge_and_unload(safe_merge=True), fingerprint


def _require_places(name: str, folder: Path, adapted: Any) -> None:
    """Raise `UserError` for a tensor of the adapter that the adapted base does not have, or the reverse."""
    from peft import get_peft_model_state_dict

    stored, own = _read(folder), get_peft_model_state_dict(adapted, save_embedding_layers=False)
    places = {**adapted.state_dict(), **own}  # the former for embeddings that are stored whole
    wrong = {key: "lacks" for key in own.keys() - stored.keys()}
    for key, tensor in stored.items():
        if key not in places or places[key].shape != tensor.shape:
            wrong[key] = f"has {tuple(tensor.shape)} for"
    for key in sorted(wrong):
        raise UserError(
            f"`{name}`: the adapter does not fit its base: it {wrong[key]} `{key.removeprefix(PREFIX)}`; set `lm.base` "
            "to the base that it was made for"
        )


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights in place; buffers keep their dtype, as when transformers loads in a dtype."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _read(folder: Path) -> dict[str, Tensor]:
    from peft import load_peft_weights

    return load_peft_weights(str(folder), device="cpu")


def _fingerprint(about: Mapping[str, Any], tensors: Mapping[str, Tensor], base: nn.Module) -> str:
    settings = {key: about[key] for key in _SCALES if about.get(key)}
    digest = hashlib.sha256(weights_fingerprint(base).encode())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + bytes_of(tensors[name].float()))
    return digest.hexdigest()
