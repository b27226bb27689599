"""Initialise a training from another run's method, as `init_from` says."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceptune.config.recipe import Recipe
from perceptune.config.schema import InitConfig
from perceptune.errors import UserError, nearest
from perceptune.models.backbone import method_leaf, method_options
from perceptune.models.base import AdaptedModel
from perceptune.models.run_folder import METHOD, read_meta, read_recipe, read_tensors
from perceptune.training.batch_loader import BatchLoader
from perceptune.training.safeguards import out_of_memory_hint
from perceptune.training.word_pretraining import pretrain_words
from perceptune.types import Sample
from perceptune.utils.run_log import progress


class Start(NamedTuple):
    """The source and scope of an initialisation from another run."""

    run: str
    sha256: str  # of the run's method.safetensors
    modalities: tuple[str, ...]  # the model's modalities that the run has, feature statistics included


def start_from(model: AdaptedModel, base: Mapping[str, Mapping[str, str]], *, trust: bool = False) -> Start | None:
    """Load into a model's method the tensors of the run named by its recipe; None without `init_from`.

    `base` has the fingerprints of the model's frozen parts (`run_folder.fingerprints`). Parts of a modality that the
    run does not have keep their initialisation. `trust` as in `load`. Raises `UserError` naming what does not fit.
    """
    init = model.recipe.init_from
    if init is None:
        return None
    run = Path(init.run)
    meta = read_meta(run)
    theirs = read_recipe(run, trust=trust)
    names = _renamed_modalities(init, theirs, model.recipe)
    if "method" not in init.may_differ:
        _require_same_method(run, theirs, model.recipe)
    _require_same_base(init, meta["base"], base, names)
    given = {_renamed(name, names): tensor for name, tensor in read_tensors(run / METHOD).items()}
    own: dict[str, Tensor] = model.method.state_dict()
    given = _for_more_media(run, given, own)
    _require_fit(run, given, own, new=set(model.recipe.encoders) - set(names.values()))
    model.method.load_state_dict({**own, **given})
    digest = hashlib.sha256((run / METHOD).read_bytes()).hexdigest()
    return Start(init.run, digest, tuple(names.values()))


def initialize(
    loader: BatchLoader, base: Mapping[str, Mapping[str, str]], standardized: int, *, trust: bool = False
) -> Start | None:
    """Set the method's tensors at the start of a training, the same on every process; return where they come from.

    Feature statistics are computed from `standardized` media, unless they come from another run.
    """
    model, world = loader.model, loader.world
    with world.synced_errors(), out_of_memory_hint(loader.config):
        start = start_from(model, base, trust=trust)
        _fit_statistics(loader, standardized, start.modalities if start else ())
        pretrain_words(loader)
    world.broadcast(model.method.state_dict())
    return start


def _fit_statistics(loader: BatchLoader, most: int, known: Sequence[str]) -> None:
    model, chosen = loader.model, list[Sample]()
    if set(known) >= set(model.stores):
        return
    with progress(min(most, len(loader.samples)), "feature statistics") as bar:
        for sample in loader.one_sample_per_medium(most):
            chosen.append(sample)
            bar.advance()
    model.fit_statistics(chosen, known=known)
    if model.method.starts_from_answers and not known:
        model.fit_to_answers(loader.all.with_media_of(chosen))


def _renamed_modalities(init: InitConfig, theirs: Recipe, ours: Recipe) -> dict[str, str]:
    """Map the run's modalities to their names here."""
    for old, new in init.rename.items():
        if old not in theirs.encoders:
            raise UserError(f"`init_from.rename`: `{init.run}` has no modality `{old}`{nearest(old, theirs.encoders)}")
        if new not in ours.encoders:
            raise UserError(f"`init_from.rename`: this recipe has no modality `{new}`{nearest(new, ours.encoders)}")
    names = {name: init.rename.get(name, name) for name in theirs.encoders}
    for old, new in names.items():
        if new not in ours.encoders:
            raise UserError(f"`init_from`: `{init.run}` has an encoder for `{old}`, this recipe has none: name one, "
                            f"or say by `init_from.rename` which modality it becomes")  # fmt: skip
    if len(set(names.values())) < len(names):
        raise UserError("`init_from.rename`: two modalities cannot become one")
    return names


def _renamed(tensor: str, names: Mapping[str, str]) -> str:
    return ".".join(names.get(part, part) for part in tensor.split("."))


def _require_same_method(run: Path, theirs: Recipe, ours: Recipe) -> None:
    one, other = theirs.method.name, ours.method.name
    permit = "(`init_from.may_differ: [method]` permits this as long as the tensors fit)"
    if method_leaf(theirs).module is not method_leaf(ours).module:
        raise UserError(f"`init_from`: `{run}` has method `{one}`, this recipe `{other}` {permit}")
    before, now = (method_options(recipe).model_dump() for recipe in (theirs, ours))
    for key in before:
        if before[key] != now[key]:
            raise UserError(
                f"`init_from`: `{run}` has method.{key} = {before[key]!r}, this recipe {now[key]!r} {permit}"
            )


def _require_same_base(
    init: InitConfig, before: Mapping[str, Any], now: Mapping[str, Mapping[str, str]], names: Mapping[str, str]
) -> None:
    pairs = {"lm": "lm"} if "lm" not in init.may_differ else {}
    if "encoders" not in init.may_differ:
        pairs |= {f"encoders.{old}": f"encoders.{new}" for old, new in names.items()}
    for old, new in pairs.items():
        if before[old]["fingerprint"] != now[new]["fingerprint"]:
            raise UserError(
                f"`init_from`: `{init.run}` was trained on another {old} (`{before[old]['id']}`) than this recipe's "
                f"{new} `{now[new]['id']}` (`init_from.may_differ: [{old.split('.')[0]}]` permits this)"
            )


def _for_more_media(run: Path, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a run with neutral rows for the media that this recipe takes beyond that run's.

    Raises `UserError` if the recipe takes fewer media.
    """
    found = dict(given)
    for name in {**given, **own}:
        if not name.startswith("orders."):  # of `MediumOrder`: a row for each medium after the first
            continue
        before, now = given.get(name), own.get(name)
        rows = 0 if before is None else len(before)
        if rows > (0 if now is None else len(now)):
            modality = name.split(".")[1]
            raise UserError(f"`init_from`: `{run}` takes {rows + 1} media of modality {modality}, this recipe fewer: "
                            f"set `encoders.{modality}.max_media` to {rows + 1} or more")  # fmt: skip
        if now is not None:
            found[name] = now if before is None else torch.cat([before, now[rows:].to(before.device)])
    return found


def _require_fit(run: Path, given: Mapping[str, Tensor], own: Mapping[str, Tensor], new: set[str]) -> None:
    """Raise unless every tensor is on both sides with one shape, except those of `new` modalities."""
    for name in sorted(set(own) - set(given)):
        if new.isdisjoint(name.split(".")):
            raise UserError(f"`init_from`: `{run}` has no tensor `{name}`, which this recipe's method has")
    for name, tensor in given.items():
        if name not in own:
            raise UserError(f"`init_from`: `{run}` has a tensor `{name}`, which this recipe's method has not")
        if tensor.shape != own[name].shape:
            raise UserError(
                f"`init_from`: `{name}` has shape {tuple(tensor.shape)} in `{run}`, here {tuple(own[name].shape)}"
            )
