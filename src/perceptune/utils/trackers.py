"""Experiment trackers: TensorBoard files, trackio, wandb. All are optional, and an error of one never stops training.

Chosen by the recipe key `train.report_to` and imported on use. No login is requested: wandb works offline unless
WANDB_MODE is set.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceptune.errors import UserError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "perceptune"
FOLDERS = (TENSORBOARD, WANDB) = ("tensorboard", "wandb")  # their subfolders of a run folder


# Any one of these modules suffices; messages recommend the first.
MODULES = {"tensorboard": ("tensorboardX", "tensorboard"), "trackio": ("trackio",), "wandb": ("wandb",)}


def require_trackers(names: Sequence[str]) -> None:
    """Raise `UserError` before training for a tracker whose package is not installed."""
    for name in names:
        if _first(MODULES[name]) is None:
            raise UserError(f"`train.report_to: {name}` needs a package: run `pip install {MODULES[name][0]}`")


class Trackers:
    """A group of Accelerate's trackers. A tracker is closed at its first error, which is printed on stderr."""

    def __init__(self, names: Sequence[str], title: str, run: Path, recipe: Mapping[str, Any]) -> None:
        self.alive: dict[str, GeneralTracker] = {}
        self._owns_state = bool(names) and _make_state()
        for name in names:
            self._try(name, self._start, name, title, run, recipe)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Send the numbers of a row of the run's log to every tracker."""
        numbers = dict(_numbers(values, "train" if event == "step" else event))
        step = values.get("step")
        if event in ("step", "eval") and isinstance(step, int):
            for name, tracker in [*self.alive.items()]:
                self._try(name, tracker.log, dict(numbers), step)

    def close(self) -> None:
        """Close all trackers at the end of training."""
        for name, tracker in [*self.alive.items()]:
            self._try(name, tracker.finish)
        self.alive = {}
        if self._owns_state:
            _drop_state()
            self._owns_state = False

    def _start(self, name: str, *given: Any) -> None:
        self.alive[name] = _started(name, *given)

    def _try(self, name: str, call: Callable[..., Any], *given: Any) -> None:
        try:
            call(*given)
        except Exception as error:  # noqa: BLE001 - third parties raise anything; hours of training are worth more
            self.alive.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            print(f"warning: `{name}` failed ({reason}); the training goes on without it", file=sys.stderr)


def _started(name: str, title: str, run: Path, recipe: Mapping[str, Any]) -> GeneralTracker:
    """Start or continue a run of a tracker; its files are written to the run's folder if the tracker supports that."""
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    tracker: Any
    if name == TENSORBOARD:
        tracker = TensorBoardTracker(TENSORBOARD, run)
    elif name == WANDB:
        mode = os.environ.get("WANDB_MODE", "offline")
        tracker = WandBTracker(PROJECT, name=title, dir=str(run), config=dict(recipe), mode=mode)
    else:
        tracker = TrackioTracker(PROJECT, name=title, config=dict(recipe))
    tracker.main_process_only = False  # only the main process has trackers
    tracker.start()
    if name == TENSORBOARD:
        tracker.writer.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in recipe.items()))
    return tracker


def _make_state() -> bool:
    """Create the state that Accelerate's logger requires, unless a launch has; return whether it was created."""
    from accelerate import PartialState

    if PartialState._shared_state:
        return False
    PartialState()
    return True


def _drop_state() -> None:
    from accelerate import PartialState

    PartialState._reset_state()


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested mapping: `{"loss": 1, "lr": {"prompt": 2}}` -> train/loss, train/lr/prompt."""
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            yield name, float(value)


def _first(modules: Sequence[str]) -> str | None:
    return next((module for module in modules if importlib.util.find_spec(module) is not None), None)
