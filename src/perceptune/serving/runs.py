"""The served runs by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from perceptune.config.recipe import Recipe
from perceptune.data.answer_cleaning import AnswerCleaning
from perceptune.errors import UserError, error_prefix, nearest
from perceptune.models.base import AdaptedModel
from perceptune.models.build import BACKBONES, text_of
from perceptune.models.consensus import require_single
from perceptune.models.model_pool import Attachments, Borrowed, ModelPool
from perceptune.models.run_folder import META, cleaning_of, has_histories, load, read_meta, read_recipe
from perceptune.models.slots.model import SlotModel
from perceptune.models.structured import JsonForms
from perceptune.models.text_format import TextFormat
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import Limits
from perceptune.types import Decoding


@dataclass(frozen=True)
class ServedRun:
    """A loaded run. `text` is for the server's thread alone: a tokenizer must not be used by two threads at a time."""

    name: str
    created: int  # seconds since 1970
    model: AdaptedModel
    text: TextFormat
    clean: AnswerCleaning  # gives the answer in a generated text, as `perceptune answer` prints it
    attachments: Attachments  # on the shared LM while this run answers
    is_trained_on_conversations: bool = False

    @cached_property
    def json_forms(self) -> JsonForms:
        """Compiler of forms for answers. Raises `UserError` if xgrammar is not installed."""
        return JsonForms(self.text)

    def takes_json(self, decoding: Decoding) -> bool:
        """Whether answers decoded like this can be held to a form: token by token, without a search."""
        model = self.model
        if not isinstance(model, SlotModel) or decoding.beams > 1 or decoding.changes_scores:
            return False
        return not model.method.slots_see_text and model.lm.why_reference_path(()) is None

    @property
    def takes_history(self) -> bool:
        """Whether its template has a place for earlier turns."""
        return self.text.takes_history

    def refusal_of(self, roles: Sequence[str]) -> str | None:
        """Return why its chat template cannot express messages of these roles; None if it can."""
        try:
            if self.text.chat is not None:
                self.text.chat.parts_of(tuple(roles))
        except UserError as error:
            return str(error)
        return None

    @property
    def max_media(self) -> dict[str, int]:
        """Maximum number of media of each modality in a conversation."""
        return {modality: self.model.recipe.encoders[modality].max_media for modality in self.model.stores}


class Runs(dict[str, ServedRun]):
    """Runs by name."""

    def __init__(self, runs: Sequence[ServedRun]) -> None:
        super().__init__({run.name: run for run in runs})

    def named(self, name: str) -> ServedRun:
        """Return a run. Raises `ApiError` for an unknown one."""
        if name not in self:
            known = nearest(name[:80], self)
            raise ApiError(404, f"there is no model `{name[:80]}`{known}", param="model", code="model_not_found")
        return self[name]

    @property
    def frames(self) -> int:
        """Maximum number of frames that any of them uses of a video."""
        encoders = [encoder for run in self.values() for encoder in run.model.encoders.values()]
        return max((int(getattr(encoder, "frames", 1)) for encoder in encoders), default=1)


@dataclass(frozen=True)
class Described:
    """A run folder of which only the recipe has been read."""

    name: str
    folder: Path
    recipe: Recipe


def describe_runs(given: Sequence[str], *, trust: bool = False) -> list[Described]:
    """Read the recipes of runs given as FOLDER or NAME=FOLDER. Raises `UserError` for a non-run or a repeated name."""
    described = []
    for name, folder in _names(given).items():
        if not folder.is_dir():
            raise UserError(f"`{folder}` is not a run folder: there is no such folder")
        read_meta(folder)
        described.append(Described(name, folder, read_recipe(folder, trust=trust)))
    return described


def load_runs(
    described: Sequence[Described], limits: Limits, *, overrides: Sequence[str] = (), trust: bool = False,
    device: str | None = None,
) -> Runs:  # fmt: skip
    """Load runs whose recipes have been read. Raises `UserError` for one that is damaged, or beyond the limits."""
    kept = [] if any(word.startswith("cache.features=") for word in overrides) else ["cache.features=off"]
    pool, runs = ModelPool(), []
    for one in described:
        if len(described) > 1 and BACKBONES[one.recipe.backbone].shares_base:
            pool.plan(one.recipe)
        runs.append(_loaded(one, pool, [*kept, *overrides], trust, device))
        with error_prefix(f"`{one.folder}`"):
            require_single(runs[-1].model.decoding, "the server, which sends each token as it is generated")
        for modality, encoder in runs[-1].model.encoders.items():
            # For videos only: the frames of an audio file's spectrogram are not decoded one by one.
            if modality == "video" and int(getattr(encoder, "frames", 1)) > limits.video_frames:
                raise UserError(f"`{one.folder}`: encoders.{modality} takes more frames than --video-frames allows")
        if runs[-1].model.decoding.max_new_tokens > limits.tokens:
            raise UserError(f"`{one.folder}`: decode.max_new_tokens is more than --tokens = {limits.tokens}")
    return Runs(runs)


def _loaded(one: Described, pool: ModelPool, overrides: Sequence[str], trust: bool, device: str | None) -> ServedRun:
    lent = Borrowed(pool)
    model = load(one.folder, overrides=overrides, trust=trust, parts=lent, device=device)
    lent.attachments.take_off()
    created = int((one.folder / META).stat().st_mtime)
    learned = has_histories(read_meta(one.folder))
    return ServedRun(one.name, created, model, text_of(model), cleaning_of(model), lent.attachments, learned)


def _names(given: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for one in given:
        name, _, folder = one.rpartition("=")
        path = Path(folder)
        name = name or path.resolve().name
        if not re.fullmatch(r"[\w.:@/+-]{1,80}", name):
            raise UserError(f"`{name}`: a model's name has letters, digits and . : @ / + - _ only: give NAME={folder}")
        if name in folders:
            raise UserError(f"two runs are called `{name}`: give one of them another name as NAME={folder}")
        folders[name] = path
    return folders
