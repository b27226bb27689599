"""Saved state of a training: the run folder and its checkpoints."""

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from perceptune.config.recipe import Recipe, absolute_files, tasks_in
from perceptune.errors import UserError, disk_errors
from perceptune.models.run_folder import META, METHOD, RECIPE, read_meta, read_recipe, read_tensors, write_tensors
from perceptune.utils.atomic_io import whole_folder, write_text
from perceptune.utils.locking import locked
from perceptune.utils.paths import absolute
from perceptune.utils.run_log import LOG
from perceptune.utils.trackers import FOLDERS

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
LOCK, CHECKPOINTS, BAD_MEDIA = ".lock", "checkpoints", "bad_media.jsonl"
# The files of a run before its first checkpoint.
BEGUN = {RECIPE, META, LOG, LOCK, CHECKPOINTS, BAD_MEDIA, *FOLDERS}
# The limit of broken media affects no computation, so a run that reached it may be resumed with another.
_MAY_CHANGE = "max_bad_media"


@dataclass
class State:
    """State of a training beside tensors; saved as JSON."""

    step: int = 0
    samples: int = 0  # trained on so far, over all processes; without those skipped for their media
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    data: str = ""  # digest of the training samples, which a resumed run must match
    bad: dict[str, str] = field(default_factory=dict)  # broken media and why

    def add_score(self, value: float) -> None:
        """Count an evaluation at the current step by its value of the task's metric."""
        if self.best is None or value > self.best:
            self.best, self.best_step, self.evaluations_without_gain = value, self.step, 0
        else:
            self.evaluations_without_gain += 1


def open_run(given: Recipe | None, run: Path | None, held: ExitStack, *, resume: bool) -> tuple[Path, Recipe]:
    """Return the run folder to write to, locked by `held`, and its recipe.

    A run is never overwritten unless it ended before its first checkpoint: then there is nothing to lose.
    """
    if given is None and (run is None or not resume):
        raise UserError("name a recipe, or the run folder to resume")
    folder = run if run is not None else Path("runs") / (given.name if given else "")
    _require_place(folder, resume=resume)
    busy = f"`{folder}` is in use by another training: wait for its end, or choose another folder with --run"
    held.enter_context(locked(folder / LOCK, busy=busy))
    if not resume:
        assert given is not None
        if not _is_begun(folder):
            raise UserError(
                f"`{folder}` holds a run already: resume it with --resume, or choose another folder with --run"
            )
        _clear(folder)
        return folder, _with_absolute_paths(given)
    if (folder / META).is_file():  # absent after an interrupted start, which leaves nothing of another version
        read_meta(folder)
    stored = read_recipe(folder)
    if given is not None:
        try:
            require_same_recipe(folder, stored, given)
        except UserError:
            if not _is_begun(folder):
                raise
            _clear(folder)
            return folder, _with_absolute_paths(given)
        stored = _with_changes(folder, stored, given)
    return folder, stored


def _with_changes(folder: Path, stored: Recipe, given: Recipe) -> Recipe:
    """Return the run's recipe with the changes allowed when resuming, and store it in the run."""
    wanted = {_MAY_CHANGE: getattr(given.train, _MAY_CHANGE)}
    changed = stored.model_copy(update={"train": stored.train.model_copy(update=wanted)})
    if changed != stored:
        write_text(folder / RECIPE, changed.dump())
    return changed


def _require_place(folder: Path, *, resume: bool) -> None:
    """Make the folder of a new run. Raises `UserError` if there is no run to resume, or other files are there."""
    if _is_run(folder):
        return
    if resume:
        raise UserError(f"`{folder}` holds no run to resume")
    if folder.exists() and not _is_begun(folder):
        raise UserError(f"`{folder}` is not empty and holds no run: choose another folder with --run")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _is_run(folder: Path) -> bool:
    return (folder / META).is_file() or (folder / RECIPE).is_file()


def _is_begun(folder: Path) -> bool:
    """Return whether a folder holds only the files of a training that ended before its first checkpoint."""
    if not folder.is_dir():
        return False
    left = [path for path in folder.iterdir() if not path.name.endswith(".tmp")]
    return all(path.name in BEGUN for path in left) and Checkpoints(folder).last() is None


def _clear(folder: Path) -> None:
    """Remove the files of a training that ended before its first checkpoint."""
    for name in BEGUN - {LOCK}:
        path = folder / name
        with disk_errors(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


class Checkpoints:
    """The `checkpoints/` of a run: training resumes from the newest complete one."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / CHECKPOINTS

    def clean(self) -> None:
        """Remove the partial files of a process that was killed while writing."""
        for leftover in [*self.run.glob(".*.tmp"), *self.folder.glob(".*.tmp")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def last(self) -> Path | None:
        """Return the newest checkpoint; incomplete ones have another name and are never returned."""
        found = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        return found[-1] if found else None

    def to_resume(self) -> Path | None:
        """Return the newest checkpoint after `clean`. Raises `UserError` for a run that ended before its first one."""
        self.clean()
        last = self.last()
        if last is None and (self.run / METHOD).is_file():
            raise UserError(f"`{self.run}` has a trained method but no checkpoint: it cannot be resumed")
        return last

    def where(self) -> str:
        """Return the location of the last good state, for messages."""
        last = self.last()
        return f"The last good checkpoint is {last}." if last else "No checkpoint had been written yet."

    def save(
        self, step: int, method: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint atomically, then remove the earlier ones. An existing one has the same bits."""
        path = self.folder / f"step-{step:08d}"
        if not path.is_dir():
            with disk_errors(path), whole_folder(path) as folder:
                write_tensors(folder / METHOD, method)
                write_tensors(folder / OPTIMIZER, optimizer)
                write_text(folder / STATE, json.dumps(dict(state)))
        for other in self.folder.glob("step-*"):
            if other != path:
                shutil.rmtree(other)

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read optimizer tensors and state of a checkpoint."""
        return read_tensors(path / OPTIMIZER), json.loads((path / STATE).read_text(encoding="utf-8"))


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Make paths of local models and data files absolute, so that the run can be used from any folder."""
    data = recipe.model_dump(mode="json")
    for part in (data["lm"], *data["encoders"].values()):
        if Path(part["id"]).expanduser().is_dir() and part["id"] != "default":
            part["id"] = str(Path(part["id"]).expanduser().resolve())
    for task in tasks_in(data):
        task |= absolute_files(task)
    if data["init_from"]:
        data["init_from"]["run"] = absolute(str(data["init_from"]["run"]))
    return Recipe.model_validate(data)


def require_same_recipe(run: Path, stored: Recipe, given: Recipe) -> None:
    """Raise `UserError` naming the first key in which a run's recipe and the given one differ."""
    before, now = (_flat(one.model_dump(mode="json")) for one in (stored, _with_absolute_paths(given)))
    for key in sorted(set(before) | set(now)):
        # The value that `auto` had when the run was started is stored in it.
        is_auto = now.get(key) == "auto" and before.get(key) in ("float32", "bfloat16")
        if before.get(key) != now.get(key) and not is_auto and key != f"train.{_MAY_CHANGE}":
            raise UserError(
                f"`{run}` was started with {key} = {before.get(key)!r}, the recipe now says {now.get(key)!r}: "
                f"resume it with its own recipe (leave the recipe out), or start another run{_going_on(key, run)}"
            )


def _going_on(key: str, run: Path) -> str:
    """Return advice for training a finished run longer, if a longer schedule was requested."""
    longer = key in ("train.steps", "train.epochs", "train.samples")
    return f"; one that goes on from here has `init_from={run}`" if longer else ""


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
