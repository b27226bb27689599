"""A training of so many minutes: the steps it settles on are those of an ordinary run of the recipe it writes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.config.recipe import load_recipe
from perceptune.encoders.cache.feature_cache import GROUP
from perceptune.errors import UserError
from perceptune.models.run_folder import RECIPE
from perceptune.training import time_budget
from perceptune.training.time_budget import Costs, StepTimer
from perceptune.utils.run_log import read_log
from runs import Counting, recipe, same

MINUTES = 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.save_data(tmp_path_factory.mktemp("minutes"), rows=37)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps are timed, and whatever this machine does meanwhile, they take the same time."""
    measure = StepTimer._measure

    def measured(self: StepTimer, step: Any, most: float) -> tuple[Costs, float | None]:
        found, per_text = measure(self, step, math.inf)
        assert len(found.steps) == len(found.again) == 6
        known = {"elapsed": 3.0, "steps": (1.0,) * 6, "again": (0.5,) * 6, "features": 0.0}
        return replace(found, **known, validation=found.validation and 0.25), per_text and 0.01

    monkeypatch.setattr(StepTimer, "_measure", measured)
    monkeypatch.setattr(time_budget, "TIMED", 6)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "views": {
        "encoders": {"image": {"views": 2}}, "cache": {"features": "memory"}, "method": {"name": "lora"}, "seed": 3,
    },
    "texts": {"method": {"name": "epalm-pt", "n_levels": 2}},
    "evaluated": {"eval": {"every": 5, "patience": 1}},
    "answers": {"method": {"name": "epalm", "n_levels": 2, "first": 1, "last": 2, "connector_init": "answers"}},
    "accumulated": {"train": {"accumulate": 2, "batch_tokens": 200, "sampling": "balanced"}},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_written_recipe_gives_the_same_bits(
    name: str, data: Path, dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], steady: None
) -> None:
    section = support.train_section(steps=None, save_every=500, warmup_steps=400)
    changes = {**SETTINGS[name], "train": section | SETTINGS[name].get("train", {})}
    task = {"name": "jsonl", "train": str(data), "validation": str(data)}
    given = recipe(dwarfs, **{**changes, "task": task})
    if "encoders" in changes:
        given["encoders"] = {"image": {"id": str(dwarfs / "encoder"), **changes["encoders"]["image"]}}
    first, again = tmp_path / "first", tmp_path / "again"
    cache = {"cache": {"dir": str(tmp_path / "cache"), **changes.get("cache", {})}}
    result = perceptune.train({**given, **cache}, first, minutes=MINUTES)
    told = capsys.readouterr().err
    written = load_recipe(str(first / RECIPE))
    steps = written.train.steps
    assert steps == result.steps > 6, "more than were timed"
    assert f"{steps} steps fit into {MINUTES} minutes" in told
    assert written.train.warmup_steps == steps // 10
    assert written.eval.patience is None
    other = written.model_copy(update={"cache": written.cache.model_copy(update={"dir": tmp_path / "elsewhere"})})
    perceptune.train(other, again)
    assert same(first, again)
    rows = [[row for row in read_log(run) if row["event"] in ("step", "eval")] for run in (first, again)]
    for row in (row for part in rows for row in part):
        row.pop("seconds", None)
    assert rows[0] == rows[1]


def test_the_command_says_what_fits_and_what_was_reached(
    data: Path, dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], steady: None
) -> None:
    options = ["--lm", str(dwarfs / "lm"), "--encoder", str(dwarfs / "encoder"), "--data", str(data)]
    keys = ["train.batch_size=2", "method.n_levels=2"]
    run = str(tmp_path / "run")
    assert cli(["train", *options, "--run", run, "--minutes", str(MINUTES), *keys]) == 0
    shown = capsys.readouterr()
    steps = load_recipe(str(tmp_path / "run" / RECIPE)).train.steps
    assert "6 steps took 6.0 s:" in shown.err
    assert f"trained {steps} steps" in shown.out
    assert f"minutes of {MINUTES}" in shown.out
    assert cli(["train", "--resume", "--run", run, "--minutes", "1"]) == 2
    assert "a resumed one has its steps in its recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("minutes", "keys", "message"),
    [
        (0, [], "positive"),
        (1, ["train.epochs=2"], "leave one out"),
        (0.05, [], "too short for one step: 6 steps take about 6.0 s, after 3.0 s"),
    ],
)
def test_a_wrong_time_leaves_nothing_behind(
    minutes: float, keys: list[str], message: str, data: Path, dwarfs: Path, tmp_path: Path, steady: None
) -> None:
    given = recipe(dwarfs, task={"name": "jsonl", "train": str(data)}, train=support.train_section(steps=None))
    with pytest.raises(UserError, match=message):
        perceptune.train(given, tmp_path / "run", overrides=keys, minutes=minutes)
    assert not (tmp_path / "run" / RECIPE).exists()
    perceptune.train(given, tmp_path / "run", overrides=["train.steps=1"])


def test_the_features_of_the_rest_are_part_of_the_time(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch's media are not all encoded before the time is divided: they may take longer than there is."""
    given = recipe(
        dwarfs, task={"name": "jsonl", "train": str(support.save_data(tmp_path / "data", rows=200))},
        train=support.train_section(steps=None), method={"name": "epalm", "n_levels": 2, "standardize": False},
        cache={"dir": str(tmp_path / "cache")},
    )  # fmt: skip
    counting = Counting(monkeypatch, perceptune.build(given).encoders["image"])
    seen = []

    def settled(costs: Costs, *_: Any) -> tuple[list[Any], str]:
        seen.append((costs.features, counting.encoded))
        return [("train.steps", 30)], ""

    monkeypatch.setattr(time_budget, "settled_steps", settled)
    perceptune.train(given, tmp_path / "run", minutes=1)
    [(seconds, encoded)] = seen
    assert 40 <= encoded <= 40 + 2 * GROUP, "20 steps of 2, in whole groups"
    assert seconds > 0
    assert counting.encoded == 60, "30 steps of 2"
