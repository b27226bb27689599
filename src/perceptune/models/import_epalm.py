"""Import of official eP-ALM checkpoints as run folders.

The release saves `{"model", "optimizer", "lr_scheduler", "config", "epoch", ...}` with `torch.save`; `model` holds
the trained weights: `connector.{j}.*`, one linear map per level or one for all; `prompt_module.prefix_embedding`, a
list of embedding (0) and, with an MLP, linear (1), tanh and linear (3); and adapters under the names of the LM's
layers, each twice. The run answers as the official code does: its mask, layers, normalisation, separator, length and
beams. Facts are from its models/epalm.py and its configs.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceptune.config.recipe import load_recipe
from perceptune.config.schema import LMConfig
from perceptune.errors import UserError, error_prefix
from perceptune.models import import_epalm_config as official
from perceptune.models.build import build
from perceptune.models.import_epalm_config import OfficialConfig
from perceptune.models.run_folder import save_run
from perceptune.models.slots.build import load_lm
from perceptune.utils.torch_files import read_torch_file, require_file

_CONNECTOR = re.compile(r"connector\.(\d+)\.(weight|bias)")
_ADAPTER = re.compile(
    r"(?:model_text\.model\.decoder\.layers|transformer)\.(\d+)\.(fc2\.1|self_attn)\.adapter\.([02])\.(weight|bias)"
)
_PLACES = {"fc2.1": "mlp", "self_attn": "attention"}
_HALVES = {"0": "down", "2": "up"}
_PROMPT = "prompt_module.prefix_embedding."
_EMBEDDING = f"{_PROMPT}0.weight"
_MLP = {f"{_PROMPT}{theirs}.{kind}": f"prompt.mlp.{ours}.{kind}" for theirs, ours in ((1, 0), (3, 2)) for kind in
        ("weight", "bias")}  # fmt: skip
# Injected layers by the LM's depth, end excluded, if the file's config has none: OPT-350M; OPT-2.7B and 6.7B.
RANGES = {24: (11, 23), 32: (19, 31)}
VARIANTS = {
    (False, "mlp", False): "epalm", (True, "mlp", False): "epalm-pt", (True, "plain", False): "epalm-pt-l",
    (True, "none", False): "epalm-lin", (False, "none", True): "epalm-ada",
}  # fmt: skip


def import_official(
    file: str | Path, out: str | Path, *, lm: str, encoder: str, captions: bool = False, overrides: Sequence[str] = ()
) -> Path:
    """Convert an official checkpoint; return the run folder `out`.

    `captions`: the model was trained without questions, which a file without config does not record. `overrides` are
    recipe keys, such as `task.name=jsonl` to evaluate on your own data. Raises `UserError` for a file that is no such
    checkpoint, holds anything but plain values, has an unsupported config, or does not fit the LM and the encoder.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already and is not empty; choose another folder with --out")
    weights, raw = read_official(file)
    config = official.read_config(file, raw)
    names = _names(weights)
    with error_prefix(str(file)):
        modality, section = official.encoder_section(config, encoder)
        _require_whole(weights, names)
        method, n_levels = _method(weights, config)
        text, decode = official.text_section(config, raw, captions), official.decode_section(config, overrides)
    layers = _layers(file, config, lm, overrides)
    with error_prefix(str(file)):
        where, levels = _where(config, n_levels, layers)
    if method["shared_connector"]:
        levels = [0]
    keys = {"lm": lm, "encoders": {modality: section}, "method": method | where, "text": text, "decode": decode}
    model = build(load_recipe({"name": out.name, **keys}, overrides))
    tensors = _placed(names, weights, modality, levels)
    with error_prefix(str(file)):
        _require_encoder(config, encoder, model.encoders[modality])
        _require_shapes(tensors, model.method.state_dict(), f"lm `{lm}` with encoder `{encoder}`")
    model.method.load_state_dict({name: tensor for name, (_, tensor) in tensors.items()})
    save_run(out, model)
    return out


def read_official(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the trained weights and config of an official checkpoint without running any code in it."""
    numbers = [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]  # type: ignore[attr-defined]
    old_name = (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")  # type: ignore[attr-defined]
    require_file(file, "checkpoint")
    data = read_torch_file(file, [*numbers, old_name])  # results are numpy's numbers: plain values too
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
        raise UserError(f"{file}: not a checkpoint of the official release: it has no `model` with tensors")
    config = data.get("config")
    weights = {str(name).removeprefix("module."): tensor.float() for name, tensor in model.items()}
    return weights, config if isinstance(config, dict) else {}


def _names(weights: Iterable[str]) -> dict[str, str]:
    """Return our name of each weight that has one; connections are numbered as in the file, under `maps.`."""
    parts = {_EMBEDDING: "prompt.embedding", **_MLP}
    found = {}
    for name in weights:
        if match := _CONNECTOR.fullmatch(name):
            found[name] = f"maps.{match[1]}.{match[2]}"
        elif match := _ADAPTER.fullmatch(name):
            layer, place, half, kind = match.groups()
            found[name] = f"adapters.{layer}_{_PLACES[place]}.{_HALVES[half]}.{kind}"
        elif name in parts:
            found[name] = parts[name]
    return found


def _require_whole(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Raise `UserError` for weights that are unknown, missing, or given twice with different values."""
    if unknown := sorted(set(weights) - set(names)):
        hint = "of adapters those are imported that the release's code runs: `normal`, without a layer norm"
        hint = hint if "adapter" in unknown[0] else "it is no trained part of eP-ALM"
        raise UserError(f"unknown weight `{unknown[0]}`: {hint}")
    count = len({ours.split(".")[1] for ours in names.values() if ours.startswith("maps.")})
    wanted = [f"connector.{j}.{kind}" for j in range(max(count, 1)) for kind in ("weight", "bias")]
    wanted += [_EMBEDDING] if any(name.startswith(_PROMPT) for name in names) else []
    wanted += _MLP if names.keys() & _MLP.keys() else []
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"lacks `{missing[0]}`")
    first: dict[str, str] = {}
    for name, ours in names.items():
        if not torch.equal(weights[first.setdefault(ours, name)], weights[name]):
            raise UserError(f"`{first[ours]}` and `{name}` are the same adapter, but differ")


def _method(weights: Mapping[str, Tensor], config: OfficialConfig) -> tuple[dict[str, Any], int]:
    """Return the recipe's `method` without layers and levels, from weights and config, and the number of levels."""
    count = len({name for name in weights if _CONNECTOR.fullmatch(name)}) // 2
    said, shared = config.injected_hidden_states, config.shared_connector
    levels = (said or official.LEVELS) if count == 1 and shared is not False else count
    if (said or levels) != levels:
        raise UserError(f"config: `injected_hidden_states` is {said}, but there are {count} connections")
    if shared is True and count > 1:
        raise UserError(f"config: `shared_connector` is on, but there are {count} connections")
    prompt, adapters = _prompt(weights, config), _adapters(weights, config)
    method: dict[str, Any] = {
        "name": VARIANTS.get((count < levels, prompt, bool(adapters)), "epalm"), "shared_connector": count < levels,
        "prompt": prompt, "adapters": bool(adapters), **adapters,
        "connector_std": None, "standardize": False, "slot_mask": "official",
    }  # fmt: skip
    if prompt != "none":
        method["prompt_tokens"] = len(weights[_EMBEDDING])
    return method, levels


def _prompt(weights: Mapping[str, Tensor], config: OfficialConfig) -> str:
    """Return the kind of soft prompt. Raises `UserError` if the config names another one."""
    embedding = weights.get(_EMBEDDING)
    kind = "none" if embedding is None else "mlp" if weights.keys() & _MLP.keys() else "plain"
    found: dict[str, Any] = {"prompt_tuning": kind != "none"}
    if embedding is not None:
        found |= {"mlp": kind == "mlp", "prompt_len": len(embedding)}
    for key, value in found.items():
        if (said := getattr(config, key)) not in (None, value):
            raise UserError(f"config: `{key}` is {said}, but the weights are of {value}")
    return kind


def _adapters(weights: Mapping[str, Tensor], config: OfficialConfig) -> dict[str, Any]:
    """Return the recipe keys of the adapters in the weights; none without adapters."""
    places: dict[str, tuple[int, int]] = {}  # shape of the down-projection
    for name, tensor in weights.items():
        match = _ADAPTER.fullmatch(name)
        if match and match.group(3, 4) == ("0", "weight"):
            places.setdefault(_PLACES[match[2]], (int(tensor.shape[0]), int(tensor.shape[1])))
    if config.use_adapters is not None and config.use_adapters != bool(places):
        raise UserError(f"config: `use_adapters` is {config.use_adapters}, but the weights say otherwise")
    said = config.adapter_config if config.use_adapters else None
    if said is not None and {place for place in ("mlp", "attention") if getattr(said, place)} != set(places):
        raise UserError(f"config: `adapter_config` names other places than the weights: {', '.join(places)}")
    if not places:
        return {}
    factors = {
        getattr(said, place).downsample_factor if said is not None else hidden // down
        for place, (down, hidden) in places.items()
    }
    if len(factors) > 1:
        raise UserError("adapters of several sizes (`downsample_factor`) are not imported")
    return {"adapter_factor": factors.pop(), "adapter_at": sorted(places)}


def _layers(file: Path, config: OfficialConfig, lm: str, overrides: Sequence[str]) -> range | None:
    """Return the injected layers of the LM; None if the user sets them."""
    if any(override.startswith("method.first=") for override in overrides):
        return None
    if config.start_layer_idx is not None and config.end_layer_idx is not None:
        return range(config.start_layer_idx, config.end_layer_idx)
    depth = load_lm(LMConfig(id=lm), meta=True).n_layers
    if depth not in RANGES:
        raise UserError(
            f"{file}: does not say which of the {depth} layers of lm `{lm}` were injected: "
            "add method.first=N method.last=N (0-based, both included)"
        )
    return range(*RANGES[depth])


def _where(config: OfficialConfig, levels: int, layers: range | None) -> tuple[dict[str, Any], list[int]]:
    """Return the keys for what enters the LM where, and the levels that enter."""
    if layers is None:
        if config.text_step != 1 or config.select_higher_step:
            raise UserError("config: `text_step` and `select_higher_step` do not go with method.first")
        return {"n_levels": levels}, list(range(levels))
    plan = official.injected(config, levels, layers)
    if not plan:
        raise UserError(
            f"config: `start_layer_idx` {layers.start}, `end_layer_idx` {layers.stop} and `text_step` "
            f"{config.text_step} leave no layer that anything enters"
        )
    if len(plan) == len(layers) and levels <= len(layers):
        return {"n_levels": levels, "first": layers.start, "last": layers.stop - 1}, list(range(levels))
    return {"inject": {layer: level - levels for layer, level in plan.items()}}, sorted(set(plan.values()))


def _placed(
    names: Mapping[str, str], weights: Mapping[str, Tensor], modality: str, levels: Sequence[int]
) -> dict[str, tuple[str, Tensor]]:
    """Return (official name, tensor) by our name; connections whose level never enters have no effect: left out."""
    placed = {}
    for theirs, ours in names.items():
        if match := re.fullmatch(r"maps\.(\d+)\.(.+)", ours):
            if int(match[1]) not in levels:
                continue
            ours = f"connectors.{modality}.maps.{levels.index(int(match[1]))}.{match[2]}"
        placed[ours] = (theirs, weights[theirs])
    return placed


def _require_shapes(tensors: Mapping[str, tuple[str, Tensor]], own: Mapping[str, Tensor], what: str) -> None:
    """Raise `UserError` for weights that do not fit, and for those that the model has and the file lacks."""
    for name, (theirs, tensor) in tensors.items():
        if name not in own or tensor.shape != own[name].shape:
            wanted = tuple(own[name].shape) if name in own else "nothing of the kind"
            raise UserError(f"`{theirs}` has shape {tuple(tensor.shape)}; {what} wants {wanted}")
    if missing := [name for name in own if name not in tensors]:
        raise UserError(f"lacks the weight that is `{missing[0]}` here; {what} wants it")


def _require_encoder(config: OfficialConfig, name: str, encoder: Any) -> None:
    """Raise `UserError` for an encoder other than the one the config names."""
    given, kind = encoder.settings()["model_type"], official.encoder_kind(config)[1]
    if config.vision_model_name is not None and given != kind:
        raise UserError(
            f"config: `vision_model_name` is {config.vision_model_name}, of type `{kind}`; encoder `{name}` is "
            f"of type `{given}`"
        )
    if kind != "audio-spectrogram-transformer":
        return
    mean, std = (0.0, 0.5) if config.skip_norm else (config.norm_mean, config.norm_std)
    pairs = {  # (the encoder's value, the config's value)
        "melbins": (encoder.mel.mels, config.melbins), "target_length": (encoder.frames, config.target_length),
        "norm_mean": (encoder.scale[0], mean), "norm_std": (encoder.scale[1] / 2, std),
        "skip_norm": (encoder.scale == (0.0, 1.0), config.skip_norm),
    }  # fmt: skip
    for key in config.model_fields_set & pairs.keys():
        if not math.isclose(*pairs[key], rel_tol=1e-6):
            raise UserError(
                f"config: `{key}` is {getattr(config, key)}, but encoder `{name}` was saved with {pairs[key][0]}"
            )
