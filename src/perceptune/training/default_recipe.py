"""The recipe of a training whose user named only the data: settings that did best in our studies (docs/findings.md)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from perceptune.config.recipe import find_recipe, load_recipe, read_yaml
from perceptune.data.media.audio import read_audio_header
from perceptune.data.recognition.kinds import Learned, Summary
from perceptune.data.recognition.task_keys import Recognized
from perceptune.errors import UserError
from perceptune.models.slots.build import load_encoder_of, load_lm
from perceptune.types import Medium

HELD_OUT = 0.1  # of the media
LEAST_HELD_OUT, MOST_HELD_OUT = 20, 0.25
LEAST_TO_SELECT = 80  # media; of fewer, the held-out part is too small to choose a checkpoint on it as well
LEAST_MEDIA = 20
_PADDING = 0.1  # seconds at the end of a file that may be cut off: encoders of audio files add a few milliseconds
LEAST_STEPS, MOST_STEPS = 400, 5000
_EVALUATIONS, _PATIENCE = 10, 4
MOST_LEVELS = 6
_RECIPES = {"image": "small", "audio": "audio", "video": "video"}
_SECTIONS = ("encoders", "method", "text", "train", "eval", "decode")


def default_recipe(
    data: Recognized, *, lm: str | None = None, encoder: str | None = None, method: str | None = None,
    group_by: str | None = None, given: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the recipe for recognised data; `lm`, `encoder` and `method` replace the default ones.

    `given` are the keys that the user sets besides. Samples with the same `group_by` (see `train.hold_out`) stay
    together. Raises `UserError` for fewer than 20 media without another split.
    """
    recipe = {key: value for key, value in _base(data.learned, data.found.modality).items() if key in _SECTIONS}
    recipe["task"] = data.task
    recipe["encoders"] = _encoders(recipe.get("encoders", {}), data.found)
    if data.learned.template is not None:
        recipe["text"] = {"template": data.learned.template}
    _choose_models(recipe, data.found.modality, lm, encoder, method)
    train = recipe["train"] = dict(recipe["train"])
    splits = {split for split in ("validation", "test") if data.task.get(split) or split in data.form.splits}
    held_out: dict[str, Any] = {}
    if splits and group_by is not None:
        names = " and ".join(f"`{name}`" for name in sorted(splits))
        raise UserError(f"{data.place}: --group-by parts data without splits of its own, and it has {names}")
    if not splits and not any(key.startswith("train.hold_out") for key in given):
        held_out = train["hold_out"] = hold_out(len(data.found.media), group_by, data.place)
    share = 1 - held_out.get("media", 0) / max(len(data.found.media), 1)
    train["steps"] = steps(train, data.learned, data.found, share)
    chooses = "validation" in splits or bool(held_out.get("selecting"))
    recipe["eval"] = {
        **{key: value for key, value in recipe.get("eval", {}).items() if key not in ("split", "samples")},
        "at_end": True, "shuffled_control": True, "no_media_control": True,
        **({"rank": "choices"} if data.learned.kind == "classes" else {}),
        **({"every": max(1, train["steps"] // _EVALUATIONS), "patience": _PATIENCE} if chooses else {}),
    }  # fmt: skip
    return recipe


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


def split_line(recipe: Mapping[str, Any], found: Summary) -> str:
    """Return what is held out of the data, with the keys that change it."""
    held_out = recipe["train"].get("hold_out")
    if not held_out:
        return "evaluated on the split that was given (--validation)"
    count = f"{held_out['media']} of {len(found.media):,} media are held out (train.hold_out.media)"
    if not held_out["selecting"]:
        return f"{count} and reported on; they are too few to choose the checkpoint as well, so none is chosen"
    return f"{count}: one half chooses the checkpoint, the other one is reported (train.hold_out.selecting)"


def hold_out(media: int, group_by: str | None, place: str) -> dict[str, Any]:
    """Return `train.hold_out` for this number of media: a tenth, at least 20, at most a quarter.

    Half of them select the checkpoint if there are 80 media or more. Raises `UserError` for fewer than 20.
    """
    if media < LEAST_MEDIA:
        raise UserError(
            f"{place}: {media} media, too few to keep some apart for an honest number: give data to evaluate on by "
            "--validation, or train on all of it by train.hold_out=null"
        )
    count = min(max(round(HELD_OUT * media), LEAST_HELD_OUT), int(MOST_HELD_OUT * media))
    selecting = 0.5 if media >= LEAST_TO_SELECT else 0
    return {"media": count, "selecting": selecting, **({"group_by": group_by} if group_by else {})}


def _base(learned: Learned, modality: str) -> dict[str, Any]:
    """Return the shipped recipe whose settings did best on this kind of data."""
    name = "captions" if learned.kind == "captions" else _RECIPES[modality]
    return read_yaml(find_recipe(name))


def _encoders(base: Mapping[str, Any], found: Summary) -> dict[str, Any]:
    """Return the encoders of all modalities; audio is encoded over the length of most of its files."""
    given = base.get(found.modality) or {"id": "default"}
    encoders: dict[str, Any] = {}
    for modality in found.modalities:
        encoders[modality] = dict(given) if modality == found.modality else {"id": "default"}
        if modality == "audio":
            encoders[modality]["seconds"] = seconds(found.first["audio"])
    return encoders


def seconds(media: Sequence[Medium]) -> float:
    """Return the duration that nine of ten files do not exceed, in half seconds, from 1 to 10."""
    lengths = sorted(header.seconds for medium in media if (header := _header(medium)) is not None)
    most = lengths[math.ceil(0.9 * len(lengths)) - 1] if lengths else 10.0
    return min(max(math.ceil(2 * (most - _PADDING)) / 2, 1.0), 10.0)


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
