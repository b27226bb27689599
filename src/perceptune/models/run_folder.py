"""Run folders: storage of a trained method. Tensors are safetensors, the rest YAML and JSON; never pickle.

run.yaml            the resolved recipe
meta.json           format version, base models with fingerprints, versions, parameter counts
method.safetensors  the best method by the task's metric, or the last one without evaluation
checkpoints/step-*  method and optimizer, to resume from
"""

import json
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from perceptune._version import __version__
from perceptune.config.overrides import Override
from perceptune.config.recipe import Recipe, leaf_names, load_recipe, read_yaml
from perceptune.data.answer_cleaning import AS_WRITTEN, AnswerCleaning
from perceptune.data.build_task import make_task
from perceptune.errors import UserError, disk_error
from perceptune.models.base import AdaptedModel
from perceptune.models.build import build, settle_answering
from perceptune.models.document_frequencies import run_frequencies
from perceptune.models.neighbours import run_neighbours
from perceptune.models.run_format import FORMAT_VERSION, upgrade_recipe
from perceptune.models.run_location import META as META
from perceptune.models.run_location import METHOD as METHOD
from perceptune.models.run_location import RECIPE as RECIPE
from perceptune.models.run_location import local_run
from perceptune.models.slots.build import FrozenParts
from perceptune.utils.atomic_io import write_chunks, write_json, write_text
from perceptune.utils.devices import resolve_device, use_full_float32

CONVERSATIONS = "conversations"  # key of meta.json


def save_run(run: Path, model: AdaptedModel) -> None:
    """Write recipe, metadata and method into a run folder; each file atomically."""
    run.mkdir(parents=True, exist_ok=True)
    save_description(run, model.recipe, describe_run(model))
    write_tensors(run / METHOD, model.method.state_dict())


def save_description(run: Path, recipe: Recipe, description: Mapping[str, Any]) -> None:
    """Write recipe and metadata (`describe_run`) only, which describe a run from its start."""
    write_text(run / RECIPE, recipe.dump())
    write_json(run / META, description)


def load(
    run: str | Path, *, dtype: str | None = None, device: str | torch.device | None = None,
    overrides: Sequence[Override] = (), trust: bool = False, parts: FrozenParts | None = None, ready: bool = True,
    revision: str | None = None,
) -> AdaptedModel:  # fmt: skip
    """Load the trained model of a run folder, in the dtype stored in it (`eval.dtype`) unless `dtype` is given.

    `device` defaults to this process's GPU if there is one. `overrides` change `cache`, `decode` and `eval` keys for
    this use of the run, and the locations of its base models (`lm.id`, `lm.base`, `encoders.MODALITY.id`: same
    fingerprints); `trust` allows its recipe to import third-party code. `run` may also be a zip file of `perceptune
    export`, or `USER/NAME` or `hf://USER/NAME` on a hub, at a `revision` of it. `parts` shares frozen parts between
    models. With `ready=False` the caller moves the model and then calls its `setup`.
    Raises `UserError` for a folder that is not a run, of a newer format, damaged, or trained on other base models.
    """
    run = local_run(run, revision)
    read_meta(run)
    for override in overrides:
        word = override if isinstance(override, str) else f"{override[0]}="
        if not re.match(r"cache\.|decode\.|eval\.|lm\.(?:id|base)=|encoders\.\w+\.id=", word):
            raise UserError(
                f"`{word}`: only `cache`, `decode` and `eval` keys of a trained run can be changed, and where its "
                "base models lie"
            )
    place = resolve_device(device)
    use_full_float32(place)
    recipe = settle_answering(load_recipe(read_recipe(run, trust=trust), overrides), place)
    model = build(recipe, dtype=dtype or recipe.eval.dtype, parts=parts, ready=False)
    require_same_base(run, model)
    restore(model, run, place, ready=ready)
    return model


def restore(model: AdaptedModel, run: Path, place: torch.device, *, ready: bool = True) -> None:
    """Give a model that was built from a run's recipe what else answers depend on, and move it to `place`."""
    load_method(run / METHOD, model)
    model.cleaning = read_cleaning(run)
    model.frequencies = run_frequencies(run, model.recipe)
    model.eval().to(place)
    if ready:
        model.setup()
    model.neighbours = run_neighbours(run, model.recipe, model.stores)


def load_method(path: Path, model: AdaptedModel) -> None:
    """Load a method's tensors from a file; every name and shape must match."""
    load_tensors(model, read_tensors(path), path)


def load_tensors(model: AdaptedModel, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load the tensors of a method; every name and shape must match. `path` names them in errors."""
    own = model.method.state_dict()
    for name in sorted(set(own) ^ set(tensors)):
        side = "lacks" if name in own else "has the unknown"
        raise UserError(
            f"{path}: {side} tensor `{name}`: the file does not belong to method `{model.recipe.method.name}`"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{path}: `{name}` has shape {tuple(tensor.shape)}, the model {tuple(own[name].shape)}")
    model.method.load_state_dict(tensors)


def read_meta(run: Path) -> dict[str, Any]:
    """Read a run folder's metadata, converted to the current format."""
    if not (run / META).is_file():
        raise UserError(f"`{run}` is not a run folder: it has no {META}")
    try:
        meta: dict[str, Any] = json.loads((run / META).read_text(encoding="utf-8"))
        version = int(meta["format_version"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{run / META}: damaged: not JSON with a `format_version`") from None
    if version > FORMAT_VERSION:
        raise UserError(
            f"`{run}` has run format {version}, written by perceptune {meta.get('perceptune', 'of a later date')}; "
            f"this is perceptune {__version__}, which reads formats up to {FORMAT_VERSION}: upgrade it"
        )
    return meta


def has_histories(meta: Mapping[str, Any]) -> bool:
    """Return whether a run with this metadata was trained on samples with earlier answers."""
    return meta.get(CONVERSATIONS) is True


def read_cleaning(run: Path) -> AnswerCleaning | None:
    """Read how answers are extracted from a run's generated texts; None in folders written before it was stored."""
    stored = read_meta(run).get("cleaning")
    return None if stored is None else AnswerCleaning(**stored)


def cleaning_of(model: AdaptedModel) -> AnswerCleaning:
    """Return how a model's answers are extracted from generated texts: stored with its run, else from its task."""
    if model.cleaning is None:
        return make_task(model.recipe).cleaning if model.recipe.task else AS_WRITTEN
    return model.cleaning


def read_recipe(run: Path, *, trust: bool = False) -> Recipe:
    """Read the recipe of a run. Run folders may be untrusted: without `trust` the recipe must not import code."""
    if not (run / RECIPE).is_file():
        raise UserError(f"`{run}` is not a run folder: it has no {RECIPE}")
    version = read_meta(run)["format_version"] if (run / META).is_file() else FORMAT_VERSION
    data = upgrade_recipe(read_yaml(run / RECIPE), version)
    if not trust:
        require_no_code(data, run / RECIPE)
    return load_recipe(data, where=str(run / RECIPE))


def require_no_code(recipe: dict[str, Any], where: str | Path) -> None:
    """Raise `UserError` for a recipe that names third-party code; before `load_recipe`, which imports the task."""
    for name in leaf_names(recipe):
        if "." in name:
            raise UserError(
                f"{where}: `{name}` is third-party code, which a run folder may not name unless it is trusted (--trust)"
            )


def describe_run(model: AdaptedModel) -> dict[str, Any]:
    """Return the contents of meta.json."""
    trained, total = model.count_parameters()
    return {
        "format_version": FORMAT_VERSION,
        "perceptune": __version__,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "pillow")},
        "python": platform.python_version(),
        "base": fingerprints(model),
        "trained": trained,
        "frozen": total - trained,
        "trained_share": trained / total,
        **({} if model.cleaning is None else {"cleaning": asdict(model.cleaning)}),
        **describe_training(model.recipe),
    }


def describe_training(recipe: Recipe) -> dict[str, Any]:
    """Return what sets a run's weights apart from those of a plain training, for metadata and results."""
    given = recipe.train.model_dump(include={"ema", "objective", "pretrain_words"})
    return {key: value for key, value in given.items() if value is not None}


def fingerprints(model: AdaptedModel) -> dict[str, dict[str, str]]:
    """Return id and fingerprint of each frozen part."""
    recipe = model.recipe
    parts = {"lm": {"id": recipe.lm.id, "fingerprint": model.fingerprint}}
    for name, store in model.stores.items():
        parts[f"encoders.{name}"] = {"id": recipe.encoders[name].id, "fingerprint": store.encoder.fingerprint}
    return parts


def make_writable(folder: Path, advice: str) -> None:
    """Create a folder, parents included, and check that it is writable.

    Raises `UserError` with `advice` otherwise: better before hours of work than after.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{disk_error(folder, error)}; {advice}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    write_chunks(path, [save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; a training writes it with its first checkpoint") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged: {error}") from None


def require_same_base(run: Path, model: AdaptedModel) -> None:
    """Raise `UserError` if the frozen parts are not those the run was trained on."""
    require_bases(model, read_meta(run).get("base", {}), run)


def require_bases(model: AdaptedModel, bases: Mapping[str, Mapping[str, Any]], run: str | Path) -> None:
    """Raise `UserError` if the frozen parts have other fingerprints than `bases`, which a run stores by part."""
    for part, now in fingerprints(model).items():
        then = bases.get(part)
        if then is None or then.get("fingerprint") != now["fingerprint"]:
            raise UserError(
                f"`{run}` was trained on another base model: {part} `{now['id']}` has fingerprint "
                f"{now['fingerprint'][:12]}, the run expects {str((then or {}).get('fingerprint'))[:12]}"
            )
