"""Evaluation of runs by the suite lmms-eval (extra `lmms`): `lmms_eval --model perceptune --model_args run=DIR`.

The suite finds it through the entry point `lmms_eval.models`. No other module imports the suite.
"""

import io
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from perceptune.data.conversations import group_media, mark_media
from perceptune.data.media.rgb import to_rgb
from perceptune.data.media.suffixes import MODALITIES, modality_of
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.models.run_folder import load
from perceptune.types import Decoding, Medium, Sample
from perceptune.utils.paths import given_path

IMAGE_TAG = "<image>"  # tasks mark the position of an image by it


def manifest() -> ModelManifest:
    """Return the suite's description of this model."""
    return ModelManifest(model_id="perceptune", simple_class_path=f"{__name__}.Perceptune")


class Perceptune(lmms):
    """A run folder as a model of the suite, with as many media per question as the run takes (`max_media`).

    Generation settings are the run's own, overridden by a task's `max_new_tokens`, `num_beams`, `do_sample`,
    `temperature`, `top_p` and `length_penalty`.
    """

    is_simple = True

    def __init__(self, run: str = "", batch_size: int | str | None = None, device: str | None = None,
                 trust: bool = False, max_batch_size: Any = None, **kwargs: Any) -> None:  # fmt: skip
        super().__init__()
        if kwargs:
            raise UserError(f"--model_args: unknown `{next(iter(kwargs))}`; choose from `run`, `trust`")
        if not run:
            raise UserError("--model_args: name the run folder by `run=DIR`")
        self.model: AdaptedModel = load(run, trust=trust, device=device)
        self.batch_size = int(batch_size or self.model.recipe.eval.batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Generate an answer to each request, cut before the first of its `until`."""
        answers: list[str] = [""] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            by_settings.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        for places in by_settings.values():  # a batch has one decoding
            given = requests[places[0]].args[1]
            for start in range(0, len(places), self.batch_size):
                part = places[start : start + self.batch_size]
                samples = [self._sample(requests[place].args) for place in part]
                raw = self.model.answer(samples, decoding=self._decoding(given))
                for place, text in zip(part, raw, strict=True):
                    answers[place] = _cut(text, given.get("until") or [])
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Return the negative log-probability of each continuation with its end token, and whether it is greedy.

        The suite's multiple choice selects the smallest value, because its models return losses here. Version 0.7
        converts other types than `GenerationResult` to text, so the pair is wrapped in one.
        """
        found: list[Any] = []
        for start in range(0, len(requests), self.batch_size):
            part = requests[start : start + self.batch_size]
            samples = [self._sample(request.args) for request in part]
            aims = [[self._continuation(request.args)] for request in part]
            scored = self.model.loglikelihood(samples, aims, batch_size=self.batch_size)
            found += [GenerationResult((-logprob, is_greedy)) for [(logprob, is_greedy)] in scored]
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise `UserError`: runs answer single questions."""
        raise UserError("a perceptune run answers single questions: tasks of several rounds are not for it")

    def _sample(self, arguments: tuple[Any, ...]) -> Sample:
        """Convert a request's arguments (text, settings or target, visuals, row, task, split) to a sample."""
        question, _, to_visual, row, task, split = arguments
        name = f"{task}, {split} {row}"
        given: list[tuple[str, Medium]] = []
        for visual in (to_visual(self.task_dict[task][split][row]) if to_visual else None) or []:
            modality, medium = _medium(visual, name, self.model.stores)
            given.append((modality, medium))
        media = group_media(given)
        count = sum(modality == "image" for modality, _ in given)
        if count < 2 or question.count(IMAGE_TAG) != count:
            return Sample(name, media, question.replace(IMAGE_TAG, "").strip())
        text, marks = mark_media(question, media)
        return Sample(name, media, text, marks=marks)

    def _continuation(self, arguments: tuple[Any, ...]) -> str:
        _, target, _, row, task, split = arguments
        return str(target(self.task_dict[task][split][row]) if callable(target) else target).strip()

    def _decoding(self, given: dict[str, Any]) -> Decoding:
        names = {"max_new_tokens": "max_new_tokens", "num_beams": "beams", "do_sample": "sample",
                 "temperature": "temperature", "top_p": "top_p", "length_penalty": "length_penalty"}  # fmt: skip
        wanted = {names[key]: value for key, value in given.items() if key in names and value is not None}
        if not wanted.get("temperature", 1.0):  # tasks request greedy decoding so
            wanted |= {"temperature": 1.0, "sample": False}
        if "max_new_tokens" in wanted:
            wanted["max_length"] = None
        if wanted.keys() & {"beams", "sample", "temperature"}:  # the task names another way to generate
            wanted["consensus"] = None
        merged = replace(self.model.decoding, **wanted)
        return replace(merged, sample=bool(merged.sample) and merged.beams == 1)


def _medium(visual: Any, name: str, among: Collection[str] = MODALITIES) -> tuple[str, Medium]:
    """Convert a visual of the suite's data sets: an image in memory, an array of audio or the name of a media file."""
    if isinstance(visual, Image.Image):
        data = io.BytesIO()
        to_rgb(visual).save(data, "PNG")
        return "image", data.getvalue()
    if isinstance(visual, dict) and "array" in visual:
        data = io.BytesIO()
        soundfile.write(data, visual["array"], int(visual["sampling_rate"]), format="WAV", subtype="FLOAT")
        return "audio", data.getvalue()
    if isinstance(visual, str | Path) and (modality := modality_of(visual, among)):
        return modality, given_path(str(visual))
    raise UserError(f"{name}: {type(visual).__name__} is not an image, audio or a media file that can be read")


def _cut(text: str, until: str | Sequence[str]) -> str:
    """Return the text before the first stop string."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text.strip()
