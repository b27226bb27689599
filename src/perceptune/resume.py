"""What lets a training go on after a stop: the run folder and its checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from perceptune.checkpoint import META, METHOD, RECIPE, make_folder, read_meta, read_recipe, read_tensors
from perceptune.config import Recipe, file_keys, tasks_in
from perceptune.errors import UserError, disk_error

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


@dataclass
class State:
    """What changes while training, beside tensors; saved as JSON."""

    step: int = 0
    samples: int = 0  # trained on so far, over all processes; without those left out for their media
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    data: str = ""  # digest of the training samples: a resumed run must see the same
    bad: dict[str, str] = field(default_factory=dict)  # broken media and why


def open_run(given: Recipe | None, run: Path | None, *, resume: bool) -> tuple[Path, Recipe]:
    """The run folder to write to and the recipe it stands for; an existing run is never overwritten."""
    if given is None and (run is None or not resume):
        raise UserError("name a recipe, or the run folder to resume")
    folder = run if run is not None else Path("runs") / (given.name if given else "")
    exists = (folder / META).is_file() or (folder / RECIPE).is_file()
    if not resume:
        if exists:
            raise UserError(
                f"`{folder}` holds a run already: resume it with --resume, or choose another folder with --run"
            )
        if folder.exists() and not (folder.is_dir() and all(p.name.endswith(".tmp") for p in folder.iterdir())):
            raise UserError(f"`{folder}` is not empty and holds no run: choose another folder with --run")
        assert given is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error
        return folder, _with_absolute_paths(given)
    if not exists:
        raise UserError(f"`{folder}` holds no run to resume")
    if (folder / META).is_file():  # absent if the start was cut off; then there is nothing of another version either
        read_meta(folder)
    stored = read_recipe(folder)
    if given is not None:
        require_same_recipe(folder, stored, given)
    return folder, stored


class Checkpoints:
    """The `checkpoints/` of a run: the newest whole one is what a resume starts from."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "checkpoints"

    def clean(self) -> None:
        """Removes what a process that was killed while writing has left."""
        for leftover in [*self.run.glob(".*.tmp"), *self.folder.glob(".*.tmp")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def last(self) -> Path | None:
        """The newest checkpoint; half-written ones carry another name and are never seen."""
        found = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        return found[-1] if found else None

    def to_resume(self) -> Path | None:
        """The same after `clean`. Raises `UserError` for a run that ended before there were checkpoints."""
        self.clean()
        last = self.last()
        if last is None and (self.run / METHOD).is_file():
            raise UserError(f"`{self.run}` has a trained method but no checkpoint: it cannot be resumed")
        return last

    def where(self) -> str:
        """For a message: where the last good state lies."""
        last = self.last()
        return f"The last good checkpoint is {last}." if last else "No checkpoint had been written yet."

    def save(
        self,
        step: int,
        method: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        """Writes a checkpoint whole, then drops those before it. One that is there already has the same bits."""
        path = self.folder / f"step-{step:08d}"
        if not path.is_dir():
            self._write(path, method, optimizer, state)
        for other in self.folder.glob("step-*"):
            if other != path:
                shutil.rmtree(other)

    def _write(
        self, path: Path, method: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in method.items()}
        make_folder(
            path,
            {
                METHOD: save(tensors),
                OPTIMIZER: save(dict(optimizer)),
                STATE: json.dumps(dict(state)).encode(),
            },
        )

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Optimizer tensors and state of a checkpoint."""
        return read_tensors(path / OPTIMIZER), json.loads((path / STATE).read_text(encoding="utf-8"))


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Local models and data files by absolute path, so that the run can be used from any folder."""
    data = recipe.model_dump(mode="json")
    for part in (data["lm"], *data["encoders"].values()):
        if Path(part["id"]).expanduser().is_dir() and part["id"] != "default":
            part["id"] = str(Path(part["id"]).expanduser().resolve())
    for task in tasks_in(data):
        for key in file_keys(task):
            if "://" not in str(task[key]):  # an address says the same from any folder
                task[key] = str(Path(task[key]).expanduser().resolve())
    if data["init_from"]:
        data["init_from"]["run"] = str(Path(data["init_from"]["run"]).expanduser().resolve())
    return Recipe.model_validate(data)


def require_same_recipe(run: Path, stored: Recipe, given: Recipe) -> None:
    """Raises `UserError` naming the first key in which a run's recipe and the one given for it differ."""
    before, now = (_flat(one.model_dump(mode="json")) for one in (stored, _with_absolute_paths(given)))
    for key in sorted(set(before) | set(now)):
        # What `auto` stood for when the run was started is stored in it.
        is_auto = now.get(key) == "auto" and before.get(key) in ("float32", "bfloat16")
        if before.get(key) != now.get(key) and not is_auto:
            raise UserError(
                f"`{run}` was started with {key} = {before.get(key)!r}, the recipe now says {now.get(key)!r}: "
                f"resume it with its own recipe (leave the recipe out), or start another run{_going_on(key, run)}"
            )


def _going_on(key: str, run: Path) -> str:
    """How a finished run is trained for longer, if that was wanted: its schedule is of one length."""
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
