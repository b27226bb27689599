"""Between run folders and transformers' folders: configuration, generation settings, reading and writing."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils.hub import cached_file

from perceptune.config.recipe import Recipe, load_recipe
from perceptune.data.answer_cleaning import AnswerCleaning
from perceptune.errors import UserError, disk_errors
from perceptune.models.build import build, settle_answering
from perceptune.models.hf.configuration import TRAINED, PerceptuneConfig
from perceptune.models.hf.placeholders import placeholders_of
from perceptune.models.run_folder import (
    cleaning_of,
    fingerprints,
    load_tensors,
    require_bases,
    require_no_code,
    write_tensors,
)
from perceptune.models.shared_recipe import shared_recipe
from perceptune.models.slots.model import SlotModel
from perceptune.utils.atomic_io import write_text
from perceptune.utils.devices import resolve_device, use_full_float32

if TYPE_CHECKING:
    from perceptune.models.base import AdaptedModel

WEIGHTS, CODE = "model.safetensors", "modeling_perceptune.py"
_STUB = '''"""This model's code is the package `perceptune`: pip install perceptune"""

from perceptune.hf import PerceptuneConfig, PerceptuneForConditionalGeneration, PerceptuneProcessor  # noqa: F401
'''
_CLASSES = {
    "AutoConfig": "PerceptuneConfig",
    "AutoModelForImageTextToText": "PerceptuneForConditionalGeneration",
    "AutoProcessor": "PerceptuneProcessor",
}
# Options of `from_pretrained` that say where files lie, and those that change nothing here.
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_WITHOUT_EFFECT = {
    "_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "code_revision", "ignore_mismatched_sizes",
    "low_cpu_mem_usage", "max_memory", "offload_folder", "trust_remote_code", "use_safetensors", "weights_only",
}  # fmt: skip
_log = logging.getLogger(__name__)


def config_of(model: "AdaptedModel") -> PerceptuneConfig:
    """Return the configuration of a run's model. Raises `UserError` for one without slots, such as an InstructBLIP."""
    recipe = model.recipe
    if not isinstance(model, SlotModel):
        raise UserError(
            f"backbone: `{recipe.backbone}` is for classes of transformers' own; use `perceptune export-instructblip`"
        )
    revisions = {
        "lm": recipe.lm.revision,
        **{f"encoders.{name}": one.revision for name, one in recipe.encoders.items()},
    }
    bases = {part: {**found, "revision": revisions[part]} for part, found in fingerprints(model).items()}
    return PerceptuneConfig(
        recipe=shared_recipe(recipe.model_dump(mode="json")), bases=bases, cleaning=asdict(cleaning_of(model)),
        text_config=model.lm.config.to_dict(), placeholders=placeholders_of(model.text),
        architectures=["PerceptuneForConditionalGeneration"],
        auto_map={auto: f"{Path(CODE).stem}.{name}" for auto, name in _CLASSES.items()},
    )  # fmt: skip


def generation_config_of(model: "AdaptedModel") -> GenerationConfig:
    """Return the run's decoding as transformers' settings; what has no equal there is told in a warning."""
    decoding, text = model.decoding, model.text
    for name, is_used in (
        ("consensus", decoding.consensus is not None), ("repetition_penalty", decoding.repetition_penalty != 1),
        ("length_normalization", decoding.counts_prompt),
    ):  # fmt: skip
        if is_used:
            _log.warning("decode.%s has no equal in transformers: its loop decodes without it", name)
    drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p} if decoding.sample else {}
    searched = {"length_penalty": decoding.length_penalty} if decoding.beams > 1 else {}
    least = {"min_new_tokens": decoding.min_new_tokens} if decoding.min_new_tokens else {}
    most = (
        {"max_new_tokens": decoding.max_new_tokens}
        if decoding.max_length is None
        else {"max_length": decoding.max_length}
    )
    return GenerationConfig(
        num_beams=decoding.beams, do_sample=decoding.sample, eos_token_id=text.eos, pad_token_id=text.pad,
        **drawn, **searched, **least, **most,
    )  # fmt: skip


def recipe_of(config: PerceptuneConfig, overrides: Any = ()) -> Recipe:
    """Return the recipe in a configuration. Raises `UserError` for one that would import code, and for none at all."""
    where = config.name_or_path or "config.json"
    if config.recipe is None:
        raise UserError(f"{where}: it holds no `recipe`: write the folder with `perceptune export --to transformers`")
    require_no_code(config.recipe, where)
    return load_recipe(config.recipe, overrides, where=where)


def build_model(
    config: PerceptuneConfig, *, dtype: str | None = None, device: Any = None, overrides: Any = (),
    tensors: Mapping[str, Tensor] | None = None,
) -> SlotModel:  # fmt: skip
    """Load the frozen parts that a configuration names and, if given, the method's tensors."""
    place = resolve_device(device)
    use_full_float32(place)
    recipe = settle_answering(recipe_of(config, overrides), place)
    where = config.name_or_path or "config.json"
    model = cast(SlotModel, build(recipe, dtype=dtype or recipe.eval.dtype, ready=False))
    if config.bases:
        require_bases(model, config.bases, where)
    if tensors is not None:
        load_tensors(model, tensors, f"{where}/{WEIGHTS}")
    model.cleaning = None if config.cleaning is None else AnswerCleaning(**config.cleaning)
    model.eval().to(place)
    model.setup()
    return model


def read_pretrained(source: str | Path, options: dict[str, Any]) -> tuple[PerceptuneConfig, SlotModel, bool]:
    """Read a folder or repository for `from_pretrained`; return whether its loading info is wanted, too.

    Raises `TypeError` for unknown options.
    """
    hub = {name: options.pop(name) for name in HUB if name in options}
    config = options.pop("config", None)
    if not isinstance(config, PerceptuneConfig):
        config = PerceptuneConfig.from_pretrained(config or source, **hub)
    config.name_or_path = str(source)
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    device = _device(options.pop("device_map", None))
    overrides, wants_info = options.pop("overrides", ()), bool(options.pop("output_loading_info", False))
    unknown = {name for name, value in options.items() if value is not None} - _WITHOUT_EFFECT
    if unknown:
        raise TypeError(
            f"from_pretrained: `{min(unknown)}` is not for a Perceptune model, whose frozen parts are loaded as its "
            'recipe says; `overrides=["lm.id=..."]` changes where they lie'
        )
    stored = load_file(str(cached_file(str(source), WEIGHTS, **hub)))
    tensors = {name.removeprefix(TRAINED): tensor for name, tensor in stored.items()}
    model = build_model(config, dtype=_name_of(dtype), device=device, overrides=overrides, tensors=tensors)
    return config, model, wants_info


def _name_of(dtype: Any) -> str | None:
    """Return the name of a dtype; None for the run's own."""
    return None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")


def _device(device_map: Any) -> Any:
    """Return the device of a `device_map`. Raises `ValueError` for several."""
    if isinstance(device_map, dict):
        places = {str(place) for place in device_map.values()}
        if len(places) > 1:
            raise ValueError(f"device_map: {', '.join(sorted(places))}: the parts of a Perceptune model stay together")
        device_map = next(iter(device_map.values()), None)
    if device_map in (None, "auto", "balanced", "sequential"):
        return None
    return f"cuda:{device_map}" if isinstance(device_map, int) else torch.device(device_map)


def write_pretrained(
    folder: Path, config: PerceptuneConfig, generation: GenerationConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write configuration, generation settings, trained tensors and the stub for `trust_remote_code`."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(config.to_diff_dict(), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "generation_config.json", generation.to_json_string())
    write_text(folder / CODE, _STUB)
    write_tensors(folder / WEIGHTS, tensors)
