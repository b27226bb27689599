"""Stopped trainings go on exactly: crashes, kill -9, Ctrl-C, full disks; and what must not be resumed is not."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import perceptune
import support
from forks import Fork
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.models.run_folder import METHOD
from perceptune.utils.run_log import read_log
from runs import logged_steps, recipe, same, stop_after
from support import train_section

KILLS = 20


QP = {"mapper_width": 8, "mapper_heads": 2}
METHODS: dict[str, dict[str, Any]] = {
    "epalm": {"n_levels": 2}, "epalm-ada": {"n_levels": 2}, "epalm-lin": {"n_levels": 2},
    "depalm-xattn": {**QP, "cross_width": 8, "n_levels": 2},
    "depalm": QP, "depalm-rand": {},  # which draw dropout and tokens
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted(dwarfs: Path, tmp_path: Path, method: str) -> None:
    given = recipe(dwarfs, method={"name": method, **METHODS[method]}, eval={"every": 3})
    perceptune.train(given, tmp_path / "whole")
    stop_after(given, tmp_path / "parts", steps=3)
    assert not same(tmp_path / "whole", tmp_path / "parts")
    perceptune.train(None, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    times = ("seconds",)
    rows = [
        [{k: v for k, v in row.items() if k not in times} for row in read_log(tmp_path / n)] for n in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_kill_9_at_any_moment_loses_nothing(dwarfs: Path, tmp_path: Path) -> None:
    """Twenty kills at random steps of one training; in the end the same bits as without them."""
    given = recipe(dwarfs, train=train_section(steps=4000, save_every=7, schedule="constant"))
    chance = random.Random(7)
    run, length = tmp_path / "killed", 0

    def go_on() -> None:
        started = (run / "run.yaml").is_file()
        perceptune.train(None if started else given, run, resume=started)

    for _ in range(KILLS):
        length = _kill_in_training(Fork(go_on), run, chance)
    last = length + 10  # the rate is constant, so both trainings may end here instead of at step 4,000
    _shorten(run, last)
    perceptune.train(None, run, resume=True)
    whole = {**given, "train": train_section(steps=last, save_every=7, schedule="constant")}
    perceptune.train(whole, tmp_path / "whole")
    assert read_log(run)[-1]["event"] == "end"
    assert same(tmp_path / "whole", run)
    assert not list(run.rglob("*.tmp")), "what a killed process left half-written is cleaned up"


def _kill_in_training(child: Fork, run: Path, chance: random.Random) -> int:
    """Kills the child after a random number of further steps; returns the last step it logged."""
    before = logged_steps(run)
    target, deadline = before + chance.randint(1, 12), time.monotonic() + 600
    while logged_steps(run) < target:
        assert child.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline, "the training does not go on"
        time.sleep(chance.random() * 0.01)
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    return logged_steps(run)


def _shorten(run: Path, steps: int) -> None:
    text = (run / "run.yaml").read_text()
    assert "steps: 4000" in text
    (run / "run.yaml").write_text(text.replace("steps: 4000", f"steps: {steps}"))


def test_ctrl_c_saves_and_says_how_to_go_on(dwarfs: Path, tmp_path: Path) -> None:
    given = recipe(dwarfs, train=train_section(steps=100_000, save_every=100_000))
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(given).dump())
    words = ["train", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")]
    child = Fork(lambda: cli(words), tmp_path / "said")
    deadline = time.monotonic() + 600
    while logged_steps(tmp_path / "run") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send(signal.SIGINT)
    assert child.wait() == 130
    said = (tmp_path / "said").read_text()
    assert f"perceptune train --resume --run {tmp_path / 'run'}" in " ".join(said.split())
    kept = list((tmp_path / "run/checkpoints").iterdir())
    assert len(kept) == 1
    assert int(kept[0].name.removeprefix("step-")) == logged_steps(tmp_path / "run")


def test_a_full_disk_leaves_the_last_checkpoint(dwarfs: Path, tmp_path: Path) -> None:
    original, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target)
        if "step-00000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(UserError, match="the disk is full; nothing already saved was touched"):
            perceptune.train(recipe(dwarfs), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    perceptune.train(None, tmp_path / "run", resume=True)
    perceptune.train(recipe(dwarfs), tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")


def test_an_existing_run_is_never_overwritten(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs), tmp_path / "run")
    before = (tmp_path / "run" / METHOD).read_bytes()
    with pytest.raises(UserError, match="holds a run already: resume it with --resume"):
        perceptune.train(recipe(dwarfs), tmp_path / "run")
    changed = recipe(dwarfs, train=train_section(lr=5e-3))
    with pytest.raises(UserError, match=r"started with train.lr = 0.01, the recipe now says 0.005"):
        perceptune.train(changed, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / METHOD).read_bytes() == before


def test_changed_data_is_not_resumed(dwarfs: Path, tmp_path: Path) -> None:
    data = support.save_data(tmp_path / "data", rows=6)
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data)
    perceptune.train(given, tmp_path / "run")
    data.write_text("\n".join(data.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match="training data has changed"):
        perceptune.train(None, tmp_path / "run", resume=True)


def test_resuming_is_exact_with_every_option_on(dwarfs: Path, tmp_path: Path) -> None:
    data = support.save_data(tmp_path / "data", rows=8)
    (tmp_path / "data/train3.png").write_bytes(b"not a picture")
    options = train_section(
        batch_tokens=100, accumulate=2, clip=0.5, frozen_dropout="official", max_bad_media=1, schedule="linear"
    )
    given = {**support.recipe(dwarfs / "opt", dwarfs / "encoder", data), "train": options}
    perceptune.train(given, tmp_path / "whole")
    stop_after(given, tmp_path / "parts", steps=3)
    perceptune.train(None, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_not_harmed_by_resuming(dwarfs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    perceptune.train(recipe(dwarfs), run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    perceptune.train(None, run, resume=True)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has a trained method but no checkpoint"):
        perceptune.train(None, run, resume=True)
    assert (run / METHOD).read_bytes() == before[run / METHOD]


def test_a_run_is_not_resumed_on_another_base_model(dwarfs: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(dwarfs / "lm", tmp_path / "lm")
    given = support.recipe(moved, dwarfs / "encoder", dwarfs / "data/train.jsonl")
    perceptune.train(given, tmp_path / "run")
    shutil.rmtree(moved)
    support.save_lm(moved, "qwen2")
    with pytest.raises(UserError, match="trained on another base model"):
        perceptune.train(None, tmp_path / "run", resume=True)


def test_overrides_while_resuming_are_compared_with_the_run(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs), tmp_path / "run")
    with pytest.raises(UserError, match=r"started with train.steps = 6, the recipe now says 50"):
        perceptune.train(None, tmp_path / "run", resume=True, overrides=["train.steps=50"])
