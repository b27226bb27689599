"""Who may write a run folder: one training at a time, and a new one where an earlier start came to nothing."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.training.checkpoints import LOCK
from perceptune.training.trainer import Trainer
from perceptune.utils import locking
from runs import recipe, same
from support import train_section


@pytest.fixture
def unreadable(dwarfs: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe whose data hold a broken picture, which features meet before the first step."""
    data = support.save_data(tmp_path / "data", rows=8)
    (tmp_path / "data/train3.png").write_bytes(b"not a picture")
    return support.recipe(dwarfs / "lm", dwarfs / "encoder", data)


@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_came_to_nothing_is_made_again(unreadable: dict[str, Any], tmp_path: Path, resume: bool) -> None:
    with pytest.raises(UserError, match="not an image"):
        perceptune.train(unreadable, tmp_path / "run")
    assert (tmp_path / "run/run.yaml").is_file()
    if resume:
        perceptune.train(None, tmp_path / "run", resume=True, overrides=["train.max_bad_media=1"])
    else:
        perceptune.train(unreadable, tmp_path / "run", overrides=["train.max_bad_media=1"])
    perceptune.train(unreadable, tmp_path / "whole", overrides=["train.max_bad_media=1"])
    assert same(tmp_path / "run", tmp_path / "whole")
    assert perceptune.load_recipe(tmp_path / "run/run.yaml").train.max_bad_media == 1


def test_more_broken_media_may_be_allowed_when_resuming(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended a run behind its first checkpoint, as its number of broken media did, does not end it for good."""
    data = support.save_data(tmp_path / "data", rows=8)
    (tmp_path / "data/train5.png").write_bytes(b"not a picture")
    given = support.recipe(
        dwarfs / "lm", dwarfs / "encoder", data, method={"name": "epalm", "n_levels": 2, "standardize": False},
        train=train_section(steps=8, save_every=1), cache={"features": "off"},
    )  # fmt: skip
    with pytest.raises(UserError, match="not an image"):
        perceptune.train(given, tmp_path / "run")
    assert list((tmp_path / "run/checkpoints").iterdir())
    with pytest.raises(UserError, match=r"was started with train\.lr = "):
        perceptune.train(None, tmp_path / "run", resume=True, overrides=["train.max_bad_media=1", "train.lr=1"])
    assert perceptune.load_recipe(tmp_path / "run/run.yaml").train.max_bad_media == 0
    perceptune.train(None, tmp_path / "run", resume=True, overrides=["train.max_bad_media=1"])
    perceptune.train(given, tmp_path / "whole", overrides=["train.max_bad_media=1"])
    assert same(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/run.yaml").read_text() == (tmp_path / "whole/run.yaml").read_text()


@pytest.mark.parametrize("file", ["method.safetensors", "results.json", "notes.txt", "checkpoints/step-00000002/x"])
def test_a_folder_with_anything_to_lose_is_not_started_again(
    unreadable: dict[str, Any], tmp_path: Path, file: str
) -> None:
    with pytest.raises(UserError, match="not an image"):
        perceptune.train(unreadable, tmp_path / "run")
    (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / file).write_text("of value")
    with pytest.raises(UserError, match="holds a run already"):
        perceptune.train(unreadable, tmp_path / "run", overrides=["train.max_bad_media=1"])
    with pytest.raises(UserError, match=r"was started with train\.lr = "):
        perceptune.train(None, tmp_path / "run", resume=True, overrides=["train.lr=1"])
    assert (tmp_path / "run" / file).read_text() == "of value"


def test_a_second_training_is_refused_while_the_first_runs(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, refused = Trainer._step, []

    def beside(self: Trainer, *given: Any) -> bool:
        """Tries both ways from inside the running training."""
        if not refused:
            before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
            for resume in (False, True):
                with pytest.raises(UserError, match="in use by another training") as raised:
                    perceptune.train(None if resume else recipe(dwarfs), tmp_path / "run", resume=resume)
                refused.append(str(raised.value))
            assert {path: path.read_bytes() for path in before} == before
        return step(self, *given)

    monkeypatch.setattr(Trainer, "_step", beside)
    perceptune.train(recipe(dwarfs), tmp_path / "run")
    assert len(refused) == 2
    perceptune.train(None, tmp_path / "run", resume=True)  # the lock went with its training


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal; from filelock import FileLock; FileLock(sys.argv[1]).acquire();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / LOCK)], check=False)
    assert (tmp_path / LOCK).is_file()
    with locking.locked(tmp_path / LOCK, busy="busy"):
        pass


def test_a_disk_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", without)
    with locking.locked(tmp_path / LOCK, busy="busy"):
        pass
    assert "a disk without locks" in capsys.readouterr().err


def test_a_read_only_run_folder_is_one_line(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resuming, evaluating and predicting say it before anything is computed."""
    perceptune.train(recipe(dwarfs, train=train_section(steps=0)), tmp_path / "run")

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refused)
    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr(
        "perceptune.evaluation.runner.predict_and_score", lambda *_, **__: pytest.fail("it was answered")
    )
    data, run = str(dwarfs / "data/train.jsonl"), str(tmp_path / "run")
    for command in (["train", "--resume", "--run", run], ["eval", run], ["predict", run, data]):
        capsys.readouterr()
        assert cli(command) == 2, command
        said = capsys.readouterr().err
        assert f"{tmp_path / 'run'}: cannot be written: Read-only file system" in said
        assert ("--out" in said) == (command[0] != "train")


def test_two_predictions_do_not_write_one_file(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs, train=train_section(steps=0)), tmp_path / "run")
    command = ["predict", str(tmp_path / "run"), str(dwarfs / "data/train.jsonl"), "--out", str(tmp_path / "a.jsonl")]
    with FileLock(tmp_path / ".a.jsonl.lock"):
        assert cli(command) == 2
    assert cli(command) == 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 12


def test_recipes_and_readers_of_captions_train_on_dwarfs(dwarfs: Path, tmp_path: Path) -> None:
    """The shipped recipe, with the rows that captions are most often written in, by two readers."""
    rows = [{"image": f"train{i}.png", "caption": f"a {color} dot"} for i, color in enumerate(["red", "green", "blue"])]
    folder = dwarfs / "data"
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "captions.csv").write_text("image,caption\n" + "".join(f"{r['image']},{r['caption']}\n" for r in rows))
    small = [
        f"lm={dwarfs / 'lm'}", f"encoders.image.id={dwarfs / 'encoder'}", "encoders.image.size=16", "method.n_levels=2",
        "train.steps=1", "train.warmup_steps=0", "train.batch_size=2", "encoders.image.views=0", "decode.beams=1",
        "train.precision=float32", "eval.dtype=float32", "decode.max_new_tokens=3", "encoders.image.dtype=float32",
    ]  # fmt: skip
    for reader in ("jsonl", "csv"):
        data, run = str(folder / f"captions.{reader}"), tmp_path / reader
        named = [] if reader == "jsonl" else ["--task", reader]
        assert cli(["train", "captions", *named, "--data", data, "--run", str(run), *small]) == 0
        assert cli(["eval", str(run)]) == 0
        found = json.loads((run / "results.json").read_text())
        assert found["evaluated_samples"] == 3
        assert "CIDEr" in found["metrics"]
        assert found["trained_on_this_split"]
