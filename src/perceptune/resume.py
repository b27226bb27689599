"""What lets a training go on after a stop: the run folder's checkpoints and its list of broken media."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from perceptune.checkpoint import META, METHOD, RECIPE, make_folder, read_meta, read_recipe, read_tensors
from perceptune.config import Recipe
from perceptune.errors import UserError
from perceptune.model import AdaptedModel

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


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
        folder.mkdir(parents=True, exist_ok=True)
        return folder, _with_absolute_paths(given)
    if not exists:
        raise UserError(f"`{folder}` holds no run to resume")
    if (folder / META).is_file():  # absent if the start was cut off; then there is nothing of another version either
        read_meta(folder)
    stored = read_recipe(folder)
    if given is not None:
        _require_equal(folder, stored, _with_absolute_paths(given))
    return folder, stored


class Checkpoints:
    """The `checkpoints/` of a run: the newest whole one is what a resume starts from."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"

    def last(self) -> Path | None:
        """The newest checkpoint; half-written ones carry another name and are never seen."""
        found = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        return found[-1] if found else None

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
        """Writes a checkpoint whole, then drops those before it."""
        path = self.folder / f"step-{step:08d}"
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in method.items()}
        make_folder(
            path,
            {
                METHOD: save(tensors),
                OPTIMIZER: save(dict(optimizer)),
                STATE: json.dumps(dict(state)).encode(),
            },
        )
        for other in self.folder.iterdir():
            if other != path:
                shutil.rmtree(other)

    def read(self, model: AdaptedModel) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Method, optimizer and state of the newest checkpoint."""
        last = self.last()
        assert last is not None
        state = json.loads((last / STATE).read_text(encoding="utf-8"))
        return read_tensors(last / METHOD), read_tensors(last / OPTIMIZER), state


class BadMedia:
    """Broken or missing media met while training: listed in `bad_media.jsonl`, an error beyond the limit."""

    def __init__(self, run: Path, limit: int) -> None:
        self.path, self.limit = run / "bad_media.jsonl", limit
        self.ids: set[str] = set()
        if self.path.is_file():
            self.ids = {json.loads(line)["id"] for line in self.path.read_text(encoding="utf-8").splitlines()}

    def add(self, sample: str, reason: str) -> None:
        """Counts a sample. Raises `UserError` when there are more than `train.max_bad_media`."""
        if sample in self.ids:
            return
        self.ids.add(sample)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": sample, "error": reason}) + "\n")
        if len(self.ids) > self.limit:
            raise UserError(
                f"sample `{sample}`: {reason}; {len(self.ids)} broken so far, "
                f"`train.max_bad_media` allows {self.limit} (all of them in {self.path})"
            )


def pack_optimizer(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Adam's moments by parameter name, and the random state, as plain tensors."""
    tensors = {"rng": torch.get_rng_state()}
    for group in groups:
        for name, parameter in group["named"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.detach().contiguous().cpu()
    return tensors


def unpack_optimizer(
    tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]
) -> None:
    """The reverse of `pack_optimizer`."""
    torch.set_rng_state(tensors["rng"])
    named = {name: parameter for group in groups for name, parameter in group["named"]}
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        if name:
            parameter = named[name]
            device = torch.device("cpu") if key == "step" else parameter.device
            optimizer.state[parameter][key] = value.to(device)


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Local models and data files by absolute path, so that the run can be used from any folder."""
    data = recipe.model_dump(mode="json")
    for part in (data["lm"], *data["encoders"].values()):
        if Path(part["id"]).expanduser().is_dir() and part["id"] != "default":
            part["id"] = str(Path(part["id"]).expanduser().resolve())
    task = data["task"] or {}
    for key, value in task.items():
        if key != "name" and isinstance(value, str) and Path(value).expanduser().exists():
            task[key] = str(Path(value).expanduser().resolve())
    return Recipe.model_validate(data)


def _require_equal(run: Path, stored: Recipe, given: Recipe) -> None:
    before, now = _flat(stored.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    for key in sorted(set(before) | set(now)):
        if before.get(key) != now.get(key):
            raise UserError(
                f"`{run}` was started with {key} = {before.get(key)!r}, the recipe now says {now.get(key)!r}: "
                "resume it with its own recipe (leave the recipe out), or start another run"
            )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
