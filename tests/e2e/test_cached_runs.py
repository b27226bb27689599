"""Runs with the feature cache: what they compute and what they read; `perceptune features` around them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.data.build_task import make_task
from perceptune.models.run_folder import METHOD, describe_run
from perceptune.training.batch_loader import BatchLoader
from perceptune.training.trainer import Trainer
from perceptune.utils.distributed import World
from runs import Counting, features_folder


def recipe(dwarfs: Path, cache: Path, mode: str = "disk", **changes: Any) -> dict[str, Any]:
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl")
    return {**given, "cache": {"dir": str(cache), "features": mode}, **changes}


def test_every_mode_trains_the_same_method(dwarfs: Path, tmp_path: Path) -> None:
    files = {}
    for mode in ("disk", "memory", "off"):
        perceptune.train(recipe(dwarfs, tmp_path / "c", mode), tmp_path / mode)
        files[mode] = perceptune.load(tmp_path / mode).method.state_dict()
    assert (tmp_path / "disk" / METHOD).read_bytes() == (tmp_path / "memory" / METHOD).read_bytes()
    for name, value in files["disk"].items():
        torch.testing.assert_close(files["off"][name], value, rtol=1e-4, atol=1e-5)


def test_steps_and_answers_only_read(dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a run will need is computed before its first step, and what it will not need is not."""
    given = recipe(dwarfs, tmp_path / "c", train=support.train_section(steps=2, standardize_samples=3))
    model = perceptune.build(given)
    counting = Counting(monkeypatch, model.encoders["image"])  # type: ignore[arg-type]
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(model, make_task(model.recipe), run, World(), describe_run(model))
    step = Trainer._step

    def unencoded(self: Trainer, bar: Any, interruption: Any) -> bool:
        before = counting.encoded
        stopped = step(self, bar, interruption)
        assert counting.encoded == before
        return stopped

    monkeypatch.setattr(Trainer, "_step", unencoded)
    with contextlib.closing(trainer.loader):
        trainer.fit()
    media = {row.media["image"] for step in range(2) for batch in [trainer.loader.order.positions(step)]
             for row in [trainer.loader.samples[index] for _, index in batch]}  # fmt: skip
    assert len(media) < counting.encoded <= len(media) + 3 + 16
    answer = perceptune.AdaptedModel.answer
    before = []

    def answering(self: Any, *rest: Any, **more: Any) -> list[str]:
        before.append(counting.encoded)
        return answer(self, *rest, **more)

    monkeypatch.setattr(perceptune.AdaptedModel, "answer", answering)
    perceptune.evaluate(run)
    assert before[0] == counting.encoded


def test_training_sees_views_and_answers_see_the_plain_picture(
    dwarfs: Path, pictures: list[Path], tmp_path: Path
) -> None:
    views = {"image": {"id": str(dwarfs / "encoder"), "views": 2}}
    data = tmp_path / "train.jsonl"
    lines = [{"image": str(path), "prompt": "what?", "targets": ["noise"]} for path in pictures[:12]]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {"name": "jsonl", "train": str(data)}
    given = recipe(dwarfs, tmp_path / "c", encoders=views, task=task)
    model = perceptune.build(given)
    samples = list(make_task(model.recipe).samples("train"))
    plain = model.encode(samples)["image"].values
    assert torch.equal(plain, perceptune.build(recipe(dwarfs, tmp_path / "c")).encode(samples)["image"].values)
    with contextlib.closing(BatchLoader(model, make_task(model.recipe), tmp_path, World())) as feed:
        feed.precompute(4)
        batches = [batch for step in range(12) for batch in feed.batches(step) if batch]
        again = feed.batches(3)[0]
    seen = [batch.features["image"].values for batch in batches]
    rows = [[torch.allclose(row, one, atol=1e-4) for one in plain] for row in torch.cat(seen)]
    assert sum(map(any, rows)) < 6, "hardly a view is the whole picture"
    assert 12 < len(torch.cat(seen).flatten(1).unique(dim=0)) <= 24, "two views of twelve pictures"
    assert again is not None
    assert torch.equal(again.features["image"].values, seen[3])
    run = tmp_path / "run"
    perceptune.train(given, run)
    shutil.rmtree(tmp_path / "c")
    perceptune.train(given, tmp_path / "again")
    assert (run / METHOD).read_bytes() == (tmp_path / "again" / METHOD).read_bytes()
    perceptune.evaluate(run)


def test_bfloat16_encoders_are_another_base(dwarfs: Path, tmp_path: Path) -> None:
    low = {"image": {"id": str(dwarfs / "encoder"), "dtype": "bfloat16"}}
    model = perceptune.build(recipe(dwarfs, tmp_path / "c", encoders=low))
    assert {p.dtype for p in model.encoders.parameters()} == {torch.bfloat16}
    full = perceptune.build(recipe(dwarfs, tmp_path / "c"))
    assert model.stores["image"].folder != full.stores["image"].folder
    samples = list(make_task(model.recipe).samples("train"))
    a, b = (one.encode(samples)["image"].values for one in (model, full))
    assert a.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.3


def test_the_command_builds_shows_verifies_and_cleans(
    dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c"
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(recipe(dwarfs, cache)).dump())
    build = ["features", str(tmp_path / "r.yaml"), "--json"]
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert cli([*build, "--split", "train"]) == 0
        shares.append(json.loads(capsys.readouterr().out)["computed"])
    assert shares == [12, 0]  # one group
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert cli(build) == 0
    built = json.loads(capsys.readouterr().out)
    assert (built["computed"], built["media"], built["broken"]) == (0, 24, {})
    where = ["--dir", str(cache)]
    assert cli(["features", "info", "--json", *where]) == 0
    listed = {one["kind"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["features"]["rows"] == 12
    assert listed["features"]["bytes"] == built["bytes"] > 12 * 192
    assert cli(["features", "info", *where]) == 0
    assert cli(["features", "verify", *where]) == 0
    capsys.readouterr()
    [rows] = features_folder(cache).glob("*.rows")
    rows.write_bytes(rows.read_bytes()[:-1])
    assert cli(["features", "verify", *where]) == 1
    said = capsys.readouterr().out
    assert str(rows.with_suffix(".index")).replace("\n", "") in said.replace("\n", "")
    assert "the next use computes them again" in said.replace("\n", " ")
    for path in cache.rglob("*-*"):
        os.utime(path, (0, 0))
    assert cli(["features", "gc", *where]) == 0
    assert cli(["features", "verify", *where]) == 0
    assert cli(build) == 0
    assert '"computed": 1,' in capsys.readouterr().out, "the row that was damaged"
    os.utime(features_folder(cache) / "meta.json", (0, 0))
    assert cli(["features", "gc", "--older-than", "30", *where]) == 0
    assert [path.name for path in cache.iterdir()] == ["hashes"]
    assert cli(["features", "gc", "--max-gb", "0", *where]) == 0
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["nothing"], ["{recipe}", "cache.features=memory"], ["{recipe}", "--split", "tset"], ["info", "--dir", "x"]],
)
def test_mistakes_are_one_line(
    dwarfs: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(recipe(dwarfs, tmp_path / "c")).dump())
    assert cli(["features", *(word.replace("{recipe}", str(tmp_path / "r.yaml")) for word in words)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_lists_broken_media(dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = support.save_data(tmp_path / "data", rows=4)
    (tmp_path / "data/train2.png").write_bytes(b"not a picture")
    given = {**recipe(dwarfs, tmp_path / "c"), "task": {"name": "jsonl", "train": str(data)}}
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(given).dump())
    assert cli(["features", str(tmp_path / "r.yaml")]) == 1
    said = capsys.readouterr().out
    assert "3 rows computed for 4 media" in said
    assert "train2.png: not an image" in said


def test_without_a_cache_that_can_be_written_memory_will_do(
    dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training and answering go on with one note; building a cache, which would be for nothing, does not."""
    (tmp_path / "file").touch()
    given = recipe(dwarfs, tmp_path / "file/c")
    perceptune.train(given, tmp_path / "run")
    said = capsys.readouterr().err
    assert (said.count("note: "), f"`{tmp_path}/file/c` cannot be written (Not a directory)" in said) == (1, True)
    perceptune.train(recipe(dwarfs, tmp_path / "c", "memory"), tmp_path / "memory")
    assert (tmp_path / "run" / METHOD).read_bytes() == (tmp_path / "memory" / METHOD).read_bytes()
    answer = ["answer", str(tmp_path / "run"), "color?", "--image", str(dwarfs / "data/train0.png")]
    assert cli([*answer, f"cache.dir={tmp_path}/file/d"]) == 0
    told = capsys.readouterr()
    assert told.err.count("note: ") == 1
    assert cli([*answer, "cache.features=off"]) == 0
    assert capsys.readouterr().out == told.out
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(given).dump())
    assert cli(["features", str(tmp_path / "r.yaml")]) == 2
    assert "cannot be written" in capsys.readouterr().err
