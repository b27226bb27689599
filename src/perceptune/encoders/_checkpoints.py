"""Reading the towers of published checkpoints: exact weights or an error."""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils.hub import cached_file

from perceptune.errors import UserError
from perceptune.utils.transformers_loading import quiet_loading, require_all_weights

# Entries of a config that do not affect the features.
VOLATILE = {
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels", "out_features",
    "out_indices", "problem_type", "stage_names", "torch_dtype", "transformers_version",
}  # fmt: skip


def settings_of(config: Any) -> dict[str, Any]:
    """Return the entries that differ from the config class's defaults: entries added by later releases do not count."""
    defaults = type(config)().to_dict()
    settings = {k: v for k, v in config.to_dict().items() if k not in VOLATILE and v != defaults.get(k)}
    return settings | {"model_type": config.model_type}


def read_preprocessor(source: str, revision: str | None, part: str = "image_processor") -> dict[str, Any]:
    """Read the checkpoint's preprocessing config; empty if it has none.

    `part` is the section to read in a checkpoint of several modalities.
    """
    if Path(source).is_file():
        return {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            file = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            entries = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{source}: `{name}` cannot be read ({error})") from error
        entries = entries.get(part, entries)
        if part == "feature_extractor" and "sampling_rate" in entries:
            return dict(entries)
        if part == "image_processor" and "size" in entries:
            # A size without crop settings is the output size: the family's default crop belongs to the family's size.
            return {"do_center_crop": "crop_size" in entries} | entries
    return {}


def build_tower(
    source: str, config: Any, model: str, *, revision: str | None, dtype: torch.dtype, meta: bool,
    unused: Sequence[str] = (), arguments: Mapping[str, Any] | None = None, renamed: Mapping[str, str] | None = None,
) -> nn.Module:  # fmt: skip
    """Build the tower of transformers' class `model` with the weights in `source`; with `meta` without weights.

    `unused` are prefixes of weights that a checkpoint may contain and the tower ignores; `renamed` maps patterns in
    their names to replacements. Raises `UserError` for weights that do not fit exactly.
    """
    module, _, name = model.rpartition(".")
    kind, given = getattr(importlib.import_module(module or "transformers"), name), dict(arguments or {})
    if meta:
        with torch.device("meta"):
            tower: nn.Module = kind(config, **given)
        return tower.to(dtype)
    try:
        with quiet_loading():
            tower, report = kind.from_pretrained(
                source,
                config=config,
                revision=revision or "main",
                dtype=dtype,
                use_safetensors=True,  # never a pickle
                ignore_mismatched_sizes=True,  # they are reported, and rejected below
                output_loading_info=True,
                **({"key_mapping": dict(renamed)} if renamed else {}),
                **given,
            )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source}: the weights cannot be read ({error})") from error
    names = {key.removeprefix(f"{kind.base_model_prefix}.") for key in report["unexpected_keys"]}
    skipped = tuple(unused)
    unexpected = {name for name in names if not name.removeprefix("vision_model.").startswith(skipped)}
    require_all_weights(source, report, unexpected)
    return tower
