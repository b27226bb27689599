"""The recipe of a training whose user named only the data: settings that did best in our studies (docs/findings.md)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from perceptune.config.hold_out import VALIDATION, HoldOutConfig, held_out_splits
from perceptune.config.overrides import put, typed
from perceptune.config.recipe import Recipe, find_recipe, load_recipe, read_yaml
from perceptune.data.media.audio import read_audio_header
from perceptune.data.recognition.kinds import Learned, Summary
from perceptune.data.recognition.task_keys import Recognized
from perceptune.data.subset import sample_count
from perceptune.errors import UserError
from perceptune.models.slots.build import load_encoder_of, load_lm
from perceptune.types import Medium

HELD_OUT = 0.1  # of the media
LEAST_HELD_OUT, MOST_HELD_OUT = 20, 0.25
LEAST_TO_SELECT = 80  # media; of fewer, the held-out part is too small to choose a checkpoint on it as well
LEAST_MEDIA = 20
_PADDING = 0.1  # seconds at the end of a file that may be cut off: encoders of audio files add a few milliseconds
WHISPER_SECONDS, OTHER_SECONDS = 30.0, 10.0
LEAST_STEPS, MOST_STEPS = 400, 5000
_EVALUATIONS, _PATIENCE = 10, 4
MOST_LEVELS = 6
_RECIPES = {"image": "small", "audio": "audio", "video": "video"}
_SECTIONS = ("encoders", "method", "text", "train", "eval", "decode")


def default_recipe(
    data: Recognized, *, lm: str | None = None, encoder: str | None = None, method: str | None = None,
    group_by: str | None = None, words: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the recipe for recognised data; `lm`, `encoder` and `method` replace the default ones.

    `words` are the overrides that the user adds. Samples with the same `group_by` (see `train.hold_out`) stay
    together. Raises `UserError` for fewer than 20 media without another split.
    """
    recipe = {key: value for key, value in _base(data.learned, data.found.modality).items() if key in _SECTIONS}
    recipe["task"] = data.task
    recipe["encoders"] = _encoders(recipe.get("encoders", {}), data.found, _longest(data, encoder, words))
    if data.learned.template is not None:
        recipe["text"] = {"template": data.learned.template}
    _choose_models(recipe, data.found.modality, lm, encoder, method)
    train = recipe["train"] = _train_keys(recipe["train"], data, group_by, words)
    made = held_out_splits(train["hold_out"]) if isinstance(train["hold_out"], dict) else ()
    chooses = VALIDATION in (*data.splits, *made)
    every = "epoch" if train["steps"] is None else max(1, train["steps"] // _EVALUATIONS)
    recipe["eval"] = {
        **{key: value for key, value in recipe.get("eval", {}).items() if key not in ("split", "samples")},
        "at_end": True,
        **({"rank": "choices"} if data.learned.kind == "classes" else {}),
        **({"every": every, "patience": _PATIENCE} if chooses else {}),
    }  # fmt: skip
    return recipe


def _train_keys(
    base: Mapping[str, Any], data: Recognized, group_by: str | None, words: Sequence[str]
) -> dict[str, Any]:
    """Return the keys of `train`: the recipe's, those of `words`, and those that follow from both and the data."""
    own = [word for word in words if word.startswith("train.")]
    keys = {word.partition("=")[0] for word in own}
    given: dict[str, Any] = {"train": {**base, "hold_out": None}}
    if not data.splits and not keys & {"train.hold_out", "train.hold_out.media"}:
        given["train"]["hold_out"] = hold_out(len(data.found.media), data.place)
    for word in own:
        put(given, word)
    train: dict[str, Any] = typed(given, Recipe)["train"]
    if group_by is not None:
        if not isinstance(train["hold_out"], dict):
            why = "`train.hold_out` is set" if "train.hold_out" in keys else f"split `{data.splits[0]}` is given"
            raise UserError(f"--group-by is for media that are held out of {data.place}, and none are, as {why}")
        train["hold_out"] = {**train["hold_out"], "group_by": group_by}
    config = load_recipe({"train": train}).train  # checks the words
    if not keys & {"train.steps", "train.epochs"}:
        media = max(len(data.found.media), 1)
        amount = config.hold_out.media if isinstance(config.hold_out, HoldOutConfig) else config.hold_out
        share = 1 - (sample_count(media, amount) or 0) / media
        train["steps"] = steps(train, data.learned, data.found, share)
    elif "train.steps" not in keys:
        train["steps"] = None
    return train


def _choose_models(
    recipe: dict[str, Any], modality: str, lm: str | None, encoder: str | None, method: str | None
) -> None:
    """Set the models and the method that were named, and fit the recipe's method to their layers."""
    if lm is not None:
        recipe["lm"] = {"id": lm}
    if encoder is not None:
        recipe["encoders"][modality]["id"] = encoder
    if method is not None:
        recipe["method"] = {"name": method}
    own = recipe["method"] = dict(recipe["method"])
    if "peft" in own and lm not in (None, "default"):
        own["peft"] = {**own["peft"], "target_modules": "all-linear"}  # names of modules differ between LMs
    if {lm, encoder} - {None, "default"} and method is None:
        given = load_recipe({key: recipe[key] for key in ("lm", "encoders") if key in recipe})
        layers = load_lm(given.lm, meta=True).n_layers
        levels = [load_encoder_of(name, config, meta=True).n_layers for name, config in given.encoders.items()]
        own["n_levels"] = min(own.get("n_levels", MOST_LEVELS), 12, layers // 2, *levels)


def split_line(recipe: Mapping[str, Any], data: Recognized) -> str:
    """Return which media the run is evaluated on, with the keys that change it."""
    held_out = recipe["train"]["hold_out"]
    if isinstance(held_out, dict):
        config = HoldOutConfig(**held_out)
        count = f"{config.media} of {len(data.found.media):,} media are held out (train.hold_out.media)"
        if config.selecting == 0:
            few = "they are too few to choose the checkpoint as well, so " * (len(data.found.media) < LEAST_TO_SELECT)
            return f"{count} and reported on; {few}none is chosen (train.hold_out.selecting)"
        if config.selecting == 1:
            return f"{count}: they choose the checkpoint and are reported on (train.hold_out.selecting)"
        half = "one half" if config.selecting == 0.5 else f"{config.selecting:g} of them"
        return f"{count}: {half} chooses the checkpoint, the other one is reported (train.hold_out.selecting)"
    if held_out is not None:
        return f"{held_out} of the samples are held out and reported on (train.hold_out)"
    if not data.splits:
        return "nothing is held out (train.hold_out), so the report is about data that was trained on"
    if data.splits == (VALIDATION,):
        return "split `validation`, which was given (--validation), chooses the checkpoint and is reported on"
    if VALIDATION in data.splits:
        return "split `validation` (--validation) chooses the checkpoint, split `test` is reported on"
    return "evaluated on split `test`; none is given to choose the checkpoint (--validation)"


def hold_out(media: int, place: str) -> dict[str, Any]:
    """Return `train.hold_out` for this number of media: a tenth, at least 20, at most a quarter.

    Half of them select the checkpoint if there are 80 media or more. Raises `UserError` for fewer than 20.
    """
    if media < LEAST_MEDIA:
        raise UserError(
            f"{place}: {media} media, too few to keep some apart for an honest number: give data to evaluate on by "
            "--validation, or train on all of it by train.hold_out=null"
        )
    count = min(max(round(HELD_OUT * media), LEAST_HELD_OUT), int(MOST_HELD_OUT * media))
    return {"media": count, "selecting": 0.5 if media >= LEAST_TO_SELECT else 0}


def _base(learned: Learned, modality: str) -> dict[str, Any]:
    """Return the shipped recipe whose settings did best on this kind of data."""
    name = "captions" if learned.kind == "captions" else _RECIPES[modality]
    return read_yaml(find_recipe(name))


def _encoders(base: Mapping[str, Any], found: Summary, longest: float) -> dict[str, Any]:
    """Return the encoders of all modalities, for all media of a sample and the length of most audio files."""
    given = base.get(found.modality) or {"id": "default"}
    encoders: dict[str, Any] = {}
    for modality in found.modalities:
        encoders[modality] = dict(given) if modality == found.modality else {"id": "default"}
        if modality == "audio":
            encoders[modality]["seconds"] = seconds([*found.probed["audio"].values()], longest)
        if (most := found.most.get(modality, 1)) > 1:
            encoders[modality]["max_media"] = most
    return encoders


def _longest(data: Recognized, encoder: str | None, words: Sequence[str]) -> float:
    """Return the seconds of audio to use at most: what the default encoder takes, or what all others do."""
    named = [encoder] if data.found.modality == "audio" else []
    named += [word.partition("=")[2] for word in words if word.startswith(("encoders.audio.id=", "encoders.audio="))]
    return OTHER_SECONDS if {*named} - {None, "default"} else WHISPER_SECONDS


def seconds(media: Sequence[Medium], longest: float) -> float:
    """Return the duration that nine of ten files do not exceed, in half seconds, from 1 to `longest`."""
    lengths = sorted(header.seconds for medium in media if (header := _header(medium)) is not None)
    most = lengths[math.ceil(0.9 * len(lengths)) - 1] if lengths else longest
    return min(max(math.ceil(2 * (most - _PADDING)) / 2, 1.0), longest)


def _header(medium: Medium) -> Any:
    try:
        return read_audio_header(medium)
    except UserError:  # reported when training reads it
        return None


def steps(train: Mapping[str, Any], learned: Learned, found: Summary, share: float) -> int:
    """Return the number of steps: the recipe's own, or more for more samples, at most `MOST_STEPS`.

    `share` is the fraction of the samples that are trained on.

    A caption is worth two to three passes, a question four, a class sixteen (docs/findings.md, docs/log.md).
    """
    passes, count = {"captions": 2.5, "questions": 4, "classes": 16}[learned.kind], found.samples
    if learned.kind == "captions":
        count = found.texts
    wanted = math.ceil(passes * share * count / train["batch_size"])
    return min(max(wanted, train.get("steps", LEAST_STEPS)), MOST_STEPS)
