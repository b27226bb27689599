"""Where else a training's log goes: TensorBoard files, trackio, wandb. None is needed, and none may fail it.

Recipe key `train.report_to`. Each is imported when it is asked for. Nobody is ever asked to log in: wandb works offline
unless WANDB_MODE says otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from perceptune.errors import UserError

PROJECT = "perceptune"
FOLDERS = (TENSORBOARD, WANDB) = ("tensorboard", "wandb")  # what they leave in a run folder


class Tracker(Protocol):
    """What a tracker is asked to do, in this order."""

    def start(self, name: str, run: Path, recipe: Mapping[str, Any]) -> None:
        """Begins, or goes on with, a run of that name; what is written lies in its folder where that can be."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values at an optimizer step, by name."""

    def finish(self) -> None:
        """Nothing follows."""


class _TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def start(self, name: str, run: Path, recipe: Mapping[str, Any]) -> None:
        found = _first(MODULES["tensorboard"])
        assert found is not None
        # torch's writer needs the tensorboard package beside it, tensorboardX nothing.
        home = "torch.utils.tensorboard" if found == "tensorboard" else found
        self.writer = importlib.import_module(home).SummaryWriter(str(run / TENSORBOARD))
        self.writer.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in recipe.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


class _Trackio:
    """Its own local database; no account, no server."""

    def start(self, name: str, run: Path, recipe: Mapping[str, Any]) -> None:
        self.trackio: Any = importlib.import_module("trackio")
        self.trackio.init(project=PROJECT, name=name, config=dict(recipe))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.trackio.log(dict(values), step=step)

    def finish(self) -> None:
        self.trackio.finish()


class _Wandb:
    """Files in `wandb/` of the run folder, to be sent by `wandb sync`."""

    def start(self, name: str, run: Path, recipe: Mapping[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        wandb: Any = importlib.import_module("wandb")
        self.run = wandb.init(project=PROJECT, name=name, dir=str(run), config=dict(recipe), mode=mode)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": _TensorBoard, "trackio": _Trackio, "wandb": _Wandb}
# Any one of these modules serves; the first is the one to install.
MODULES = {"tensorboard": ("tensorboardX", "tensorboard"), "trackio": ("trackio",), "wandb": ("wandb",)}


def require_trackers(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker whose package is not installed: said before the training, not after."""
    for name in names:
        if _first(MODULES[name]) is None:
            raise UserError(f"`train.report_to: {name}` needs a package: run `pip install {MODULES[name][0]}`")


class Trackers:
    """Several trackers as one. The first error of a tracker is told on stderr, and ends that tracker alone."""

    def __init__(self, names: Sequence[str], title: str, run: Path, recipe: Mapping[str, Any]) -> None:
        self.alive = {name: TRACKERS[name]() for name in names}
        for name in names:
            self._try(name, "start", title, run, recipe)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """The numbers of a row of the run's log."""
        numbers = dict(_numbers(values, "train" if event == "step" else event))
        step = values.get("step")
        if event in ("step", "eval") and isinstance(step, int):
            for name in [*self.alive]:
                self._try(name, "log", step, numbers)

    def close(self) -> None:
        """The training is over, or stopped."""
        for name in [*self.alive]:
            self._try(name, "finish")
        self.alive = {}

    def _try(self, name: str, what: str, *given: Any) -> None:
        try:
            getattr(self.alive[name], what)(*given)
        except Exception as error:  # noqa: BLE001 - third parties raise anything; hours of training are worth more
            del self.alive[name]
            reason = f"{type(error).__name__}: {error}"
            print(f"warning: `{name}` failed ({reason}); the training goes on without it", file=sys.stderr)


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """`{"loss": 1, "lr": {"prompt": 2}}` -> train/loss, train/lr/prompt."""
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            yield name, float(value)


def _first(modules: Sequence[str]) -> str | None:
    return next((module for module in modules if importlib.util.find_spec(module) is not None), None)
