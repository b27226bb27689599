"""Weights of the official eP-ALM release as a run folder.

The release saves `{"model", "optimizer", "lr_scheduler", "config", "epoch", ...}` with `torch.save`; `model` holds what
was trained: `connector.{j}.*`, one linear map per level or one for all, and `prompt_module.prefix_embedding`, a list
of embedding (0) and, with an MLP, linear (1), tanh and linear (3). The run answers as the official code does: its mask,
layers, normalisation, separator and length. Facts are from its models/epalm.py and its configs.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceptune.building import build, load_lm
from perceptune.checkpoint import save_run
from perceptune.config import load_recipe
from perceptune.encoders.base import OPENAI
from perceptune.errors import UserError, nearest
from perceptune.sections import LMConfig

_CONNECTOR = re.compile(r"connector\.(\d+)\.(weight|bias)")
_MAPS = "connectors.image.maps."
_PROMPT = "prompt_module.prefix_embedding."
_PROMPT_PARTS = {"0.weight": "prompt.embedding"}
_MLP_PARTS = {f"{theirs}.{kind}": f"prompt.mlp.{ours}.{kind}" for theirs, ours in ((1, 0), (3, 2)) for kind in
              ("weight", "bias")}  # fmt: skip
# Injected layers by the LM's depth, end excluded, where the file's config is silent: OPT-350M; OPT-2.7B and 6.7B.
RANGES = {24: (11, 23), 32: (19, 31)}
LEVELS = 6  # encoder levels behind a shared connector, where the file's config is silent
VARIANTS = {
    (False, "mlp"): "epalm", (True, "mlp"): "epalm-pt", (True, "plain"): "epalm-pt-l", (True, "none"): "epalm-lin",
}  # fmt: skip
CLIP = {key.removeprefix("image_"): values for key, values in OPENAI.items()}  # whatever the encoder expects


def import_official(
    file: str | Path, out: str | Path, *, lm: str, encoder: str, captions: bool = False, overrides: Sequence[str] = ()
) -> Path:
    """Converts an official checkpoint, once; returns the run folder `out`.

    `captions`: the model was trained without questions. `overrides` are recipe keys, such as `task.name=jsonl` to
    evaluate on data of one's own. Raises `UserError` for a file that is no such checkpoint, holds anything but plain
    values, or does not fit the LM and the encoder.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already and is not empty; choose another folder with --out")
    weights, config = read_official(file)
    tensors = _renamed(file, weights)
    method = _method(tensors, config)
    if "first" not in method and not any(override.startswith("method.first=") for override in overrides):
        method |= _usual_range(file, lm)
    recipe = load_recipe(_recipe(out.name, lm, encoder, method, config, captions), overrides)
    model = build(recipe)
    own = model.method.state_dict()
    theirs = {ours: name for name, ours in _names(weights)}
    for name, tensor in tensors.items():
        if name not in own or tensor.shape != own[name].shape:
            raise UserError(
                f"{file}: `{theirs[name]}` has shape {tuple(tensor.shape)}; lm `{lm}` with encoder `{encoder}` wants "
                f"{tuple(own[name].shape) if name in own else 'nothing of the kind'}"
            )
    model.method.load_state_dict(tensors)
    save_run(out, model)
    return out


def read_official(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trained weights and config of an official checkpoint, without running any code in it."""
    numbers = [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]  # type: ignore[attr-defined]
    old_name = (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")  # type: ignore[attr-defined]
    if not file.is_file():
        siblings = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"no checkpoint `{file}`{nearest(file.name, siblings)}")
    try:
        with torch.serialization.safe_globals([*numbers, old_name]):  # results are numpy's numbers: plain values too
            data = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it holds `{what[1]}`" if what else "it is no file of torch.save"
        raise UserError(
            f"{file}: refused, {found}; only tensors and plain values are read, for a checkpoint can run code"
        ) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{file}: damaged, or no file of torch.save: {str(error).splitlines()[0]}") from error
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
        raise UserError(f"{file}: not a checkpoint of the official release: it has no `model` with tensors")
    config = data.get("config")
    weights = {str(name).removeprefix("module."): tensor.float() for name, tensor in model.items()}
    return weights, config if isinstance(config, dict) else {}


def _names(weights: Iterable[str]) -> list[tuple[str, str]]:
    """(official name, ours) of the weights that have one."""
    parts = {_PROMPT + theirs: ours for theirs, ours in (_PROMPT_PARTS | _MLP_PARTS).items()}
    found = []
    for name in weights:
        if match := _CONNECTOR.fullmatch(name):
            found.append((name, f"{_MAPS}{match[1]}.{match[2]}"))
        elif name in parts:
            found.append((name, parts[name]))
    return found


def _renamed(file: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names. Raises `UserError` for missing and unknown ones."""
    names = dict(_names(weights))
    if unknown := sorted(set(weights) - set(names)):
        hint = "adapters are not imported" if "adapter" in unknown[0] else "it is no trained part of eP-ALM"
        raise UserError(f"{file}: unknown weight `{unknown[0]}`: {hint}")
    count = len({name.split(".")[1] for name in names if _CONNECTOR.fullmatch(name)})
    wanted = [f"connector.{j}.{kind}" for j in range(max(count, 1)) for kind in ("weight", "bias")]
    if any(name.startswith(_PROMPT) for name in names):
        wanted.append(f"{_PROMPT}0.weight")
    if any(name.removeprefix(_PROMPT) in _MLP_PARTS for name in names):
        wanted += [_PROMPT + part for part in _MLP_PARTS]
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"{file}: lacks `{missing[0]}`")
    return {ours: weights[theirs] for theirs, ours in names.items()}


def _method(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's `method`, read off the weights and the official config."""
    count = sum(name.startswith(_MAPS) for name in tensors) // 2
    levels = int(config.get("injected_hidden_states", LEVELS)) if count == 1 else count
    shared = count < levels
    prompt = "mlp" if "prompt.mlp.0.weight" in tensors else "plain" if "prompt.embedding" in tensors else "none"
    method: dict[str, Any] = {
        "name": VARIANTS.get((shared, prompt), "epalm"), "n_levels": levels, "shared_connector": shared,
        "prompt": prompt, "connector_std": None, "standardize": False, "slot_mask": "official",
    }  # fmt: skip
    if prompt != "none":
        method["prompt_tokens"] = len(tensors["prompt.embedding"])
    if "start_layer_idx" in config and "end_layer_idx" in config:
        method |= {"first": int(config["start_layer_idx"]), "last": int(config["end_layer_idx"]) - 1}
    return method


def _usual_range(file: Path, lm: str) -> dict[str, int]:
    depth = load_lm(LMConfig(id=lm), meta=True).n_layers
    if depth not in RANGES:
        raise UserError(
            f"{file}: does not say which of the {depth} layers of lm `{lm}` were injected: "
            "add method.first=N method.last=N (0-based, both included)"
        )
    first, end = RANGES[depth]
    return {"first": first, "last": end - 1}


def _recipe(
    name: str, lm: str, encoder: str, method: dict[str, Any], config: Mapping[str, Any], captions: bool
) -> dict[str, Any]:
    """Everything as the official code does it."""
    size = int(config.get("image_res", 224))
    text = {"template": "", "separator": None} if captions else {"template": "{prompt}?", "separator": "</a>"}
    return {
        "name": name,
        "lm": lm,
        "encoders": {"image": {"id": encoder, "size": size, "resize": "squash", "resample": "bicubic", **CLIP}},
        "method": method,
        "text": {**text, "target": "{target}", "supervise": "all"},
        "decode": {"beams": 3, "max_length": 30},
    }
