"""The runs that are served, under the names they are asked for by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perceptune.building import load_text
from perceptune.checkpoint import META, load, read_recipe
from perceptune.errors import UserError, nearest
from perceptune.evaluation import make_task
from perceptune.lm import FrozenLM
from perceptune.sections import LMConfig
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import Limits
from perceptune.serving.sharing import Attachments, Pool
from perceptune.spliced import SplicedModel
from perceptune.tasks.base import Task
from perceptune.text import TextFormat
from perceptune.types import Decoding


@dataclass(frozen=True)
class Run:
    """A loaded run. `text` is for the server's own thread: a tokenizer is not to be used by two at a time."""

    name: str
    created: int  # seconds since 1970
    model: SplicedModel
    text: TextFormat
    task: Task | None
    attachments: Attachments
    positions: int | None  # tokens of prompt and answer that the LM has positions for

    @property
    def decoding(self) -> Decoding:
        """As the recipe says."""
        return Decoding(**self.model.recipe.decode.model_dump())

    def clean(self, raw: str) -> str:
        """The answer in a generated text, as `perceptune answer` prints it."""
        return self.task.clean(raw) if self.task else raw.strip()

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this run answers: its parts are on the shared LM."""
        with self.attachments.on():
            yield


class Runs(Mapping[str, Run]):
    """Runs by name."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {run.name: run for run in runs}

    def __getitem__(self, name: str) -> Run:
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def named(self, name: str) -> Run:
        """Raises `ApiError` for an unknown one."""
        if name not in self._runs:
            raise ApiError(
                404, f"there is no model `{name[:80]}`{nearest(name[:80], self._runs)}", param="model",
                code="model_not_found",
            )  # fmt: skip
        return self._runs[name]

    @property
    def frames(self) -> int:
        """The most frames that one of them takes of a clip."""
        encoders = [encoder for run in self.values() for encoder in run.model.encoders.values()]
        return max((int(getattr(encoder, "frames", 1)) for encoder in encoders), default=1)


def load_runs(
    given: Sequence[str], limits: Limits, *, overrides: Sequence[str] = (), trust: bool = False,
    device: str | None = None,
) -> Runs:  # fmt: skip
    """Runs given as FOLDER or NAME=FOLDER. Raises `UserError` for what is no run, or two of the same name."""
    folders = _names(given)
    kept = [] if any(word.startswith("cache.features=") for word in overrides) else ["cache.features=off"]
    pool, runs = Pool(), []
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"`{folder}` is not a run folder: there is no such folder")
        recipe = read_recipe(folder, trust=trust)
        if recipe.backbone != "splice":
            raise UserError(f"`{folder}`: a run with `backbone: {recipe.backbone}` cannot be served, only `splice`")
        if len(folders) > 1:
            pool.settle(recipe)
        runs.append(_loaded(name, folder, pool, [*kept, *overrides], trust, device))
        for modality, encoder in runs[-1].model.encoders.items():
            if int(getattr(encoder, "frames", 1)) > limits.video_frames:
                raise UserError(f"`{folder}`: encoders.{modality} takes more frames than --video-frames allows")
        if runs[-1].decoding.max_new_tokens > limits.tokens:
            raise UserError(f"`{folder}`: decode.max_new_tokens is more than --tokens = {limits.tokens}")
    return Runs(runs)


def _loaded(name: str, folder: Path, pool: Pool, overrides: Sequence[str], trust: bool, device: str | None) -> Run:
    lent = _Lent(pool)
    model = load(folder, overrides=overrides, trust=trust, parts=lent, device=device)
    lent.attachments.take_off()
    task = make_task(model.recipe) if model.recipe.task else None
    assert isinstance(model, SplicedModel)  # by its backbone
    text = load_text(model.recipe, model.lm)
    positions = getattr(model.lm.config, "max_position_embeddings", None)
    created = int((folder / META).stat().st_mtime)
    return Run(name, created, model, text, task, lent.attachments, positions)


class _Lent:
    """The pool's parts for one run; notes what that hangs onto its LM."""

    attachments: Attachments

    def __init__(self, pool: Pool) -> None:
        self._pool, self.encoder = pool, pool.encoder

    def lm(self, config: LMConfig, dtype: str) -> FrozenLM:
        lm = self._pool.lm(config, dtype)
        self.attachments = Attachments(lm)
        return lm


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
