"""Trackers: told of a training, and never in its way. wandb and trackio are stand-ins of their three calls."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

import perceptune
import runs
from perceptune.config.recipe import load_recipe
from perceptune.errors import UserError
from perceptune.utils import trackers
from perceptune.utils.run_log import read_log
from support import train_section

STAND_IN = """
from pathlib import Path
told = []
def init(**given):
    told.append(("init", given))
    return Run()
class Run:
    def log(self, values, step=None):
        told.append(("log", step, values))
        if FAIL and step == 3:
            raise FAIL("no more disk")
    def finish(self):
        told.append(("finish",))
log, finish = Run().log, Run().finish
"""


def fake_module(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, fail: str = "None"
) -> list[tuple[object, ...]]:
    """A module of that name; what it is told."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(f"FAIL = {fail}\n{STAND_IN}")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    told: list[tuple[object, ...]] = __import__(name).told
    return told


def trained(dwarfs: Path, run: Path, report_to: object) -> list[dict[str, object]]:
    given = runs.recipe(dwarfs, train=train_section(steps=4, report_to=report_to), eval={"every": 2})
    perceptune.train(given, run)
    return read_log(run)


@pytest.mark.parametrize(
    ("given", "names"),
    [("none", ()), (None, ()), (["none"], ()), ("wandb", ("wandb",)), (["trackio", "wandb"], ("trackio", "wandb"))],
)
def test_the_key_takes_a_name_or_a_list(given: object, names: tuple[str, ...]) -> None:
    assert load_recipe({"train": {"report_to": given}}).train.report_to == names


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UserError, match="report_to"):
        load_recipe({"train": {"report_to": "abacus"}})


def test_without_the_key_nothing_is_imported(dwarfs: Path, tmp_path: Path) -> None:
    for name in ("tensorboardX", "wandb", "trackio", "torch.utils.tensorboard"):
        sys.modules.pop(name, None)
    trained(dwarfs, tmp_path / "run", "none")
    assert not {"tensorboardX", "wandb", "trackio", "torch.utils.tensorboard"} & set(sys.modules)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_hears_what_the_log_holds(
    name: str, dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    told = fake_module(monkeypatch, tmp_path / "modules", name)
    rows = trained(dwarfs, tmp_path / "run", name)
    [(_, begun), *logged, last] = told
    assert last == ("finish",)
    assert begun["project"] == "perceptune"
    assert begun["config"]["train"]["steps"] == 4
    if name == "wandb":
        assert begun["mode"] == "offline", "nobody is asked to log in"
        assert begun["dir"] == str(tmp_path / "run")
    steps = [(step, values) for _, step, values in logged if "train/loss" in values]
    assert [(step, values["train/loss"]) for step, values in steps] == [
        (row["step"], row["loss"]) for row in rows if row["event"] == "step"
    ]
    assert {"train/grad_norm", "train/samples"} <= set(steps[0][1])
    assert any(key.startswith("train/lr") for key in steps[0][1])
    scores = [(step, values["eval/accuracy"]) for _, step, values in logged if "eval/accuracy" in values]
    assert scores == [(row["step"], row["accuracy"]) for row in rows if row["event"] == "eval"]
    assert [step for step, _ in scores] == [2, 4]


@pytest.mark.parametrize("names", [[], ["tensorboard"]])
def test_no_state_of_accelerate_is_left_behind(names: list[str], tmp_path: Path) -> None:
    """A process that is forked later, to be one of several, would take it for its own."""
    from accelerate import PartialState

    PartialState._reset_state()
    open_ones = trackers.Trackers(names, "x", tmp_path, {})
    open_ones.write("step", {"step": 1, "loss": 2.0})
    assert set(open_ones.alive) == set(names)
    open_ones.close()
    assert not PartialState._shared_state


def test_wandb_goes_online_if_its_own_variable_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_module(monkeypatch, tmp_path / "modules", "wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    trackers.Trackers(["wandb"], "x", tmp_path, {})
    assert told[0][1]["mode"] == "online"  # type: ignore[index]


@pytest.mark.parametrize("error", ["OSError", "ZeroDivisionError", "type('Strange', (Exception,), {})"])
def test_a_failing_tracker_costs_one_warning_and_nothing_else(
    error: str, dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = fake_module(monkeypatch, tmp_path / "modules", "wandb", fail=error)
    sound = fake_module(monkeypatch, tmp_path / "modules", "trackio")
    rows = trained(dwarfs, tmp_path / "run", ["wandb", "trackio"])
    assert rows[-1]["event"] == "end"
    assert capsys.readouterr().err.count("warning: `wandb` failed") == 1
    assert failing[-1][:2] == ("log", 3), "then it is left alone"
    assert sound[-1] == ("finish",)


def test_a_missing_package_is_told_before_the_training(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_first", lambda _: None)
    with pytest.raises(UserError, match=r"`train\.report_to: wandb` needs a package: run `pip install wandb`"):
        trained(dwarfs, tmp_path / "run", "wandb")
    assert [*(tmp_path / "run").glob("*")] == []


def test_tensorboard_files_hold_the_losses(dwarfs: Path, tmp_path: Path) -> None:
    """The real writer; its file is read with its own record format: length, checksum, event, checksum."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    rows = trained(dwarfs, tmp_path / "run", "tensorboard")
    [path] = (tmp_path / "run/tensorboard").iterdir()
    data, at, losses = path.read_bytes(), 0, {}
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            if value.tag == "train/loss":
                losses[event.step] = value.simple_value
        at += size + 16
    expected = {row["step"]: row["loss"] for row in rows if row["event"] == "step"}
    assert losses == pytest.approx(expected, rel=1e-6)
