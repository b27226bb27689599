"""The shipped recipes of the protocols, as they are but for their models and data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import perceptune
from perceptune.config.recipe import recipe_names
from perceptune.config.schema import EncoderConfig
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._fit import ADAPTERS
from perceptune.models.run_folder import read_recipe
from perceptune.utils.run_log import read_log
from runs import tensors

SHORT = ["method.n_levels=2", "train.epochs=1", "train.batch_size=2", "train.warmup_steps=0"]


@pytest.fixture(scope="module")
def pictures(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others start from."""
    run = tmp_path_factory.mktemp("recipes") / "pictures"
    train(dwarfs, "small", run, "task.name=jsonl", f"task.train={dwarfs / 'data/train.jsonl'}", "train.samples=4")
    return run


def train(dwarfs: Path, name: str, run: Path, *keys: str, modality: str = "image") -> Path:
    models = [f"lm={dwarfs / 'lm'}", f"encoders.{modality}={dwarfs / 'encoder'}"]
    perceptune.train(name, run, overrides=[*models, *SHORT, *keys])
    return run


def renamed(dwarfs: Path, folder: Path, **changes: str | None) -> Path:
    """The dwarfs' data with keys under other names, or left out."""
    rows = [json.loads(line) for line in (dwarfs / "data/train.jsonl").read_text().splitlines()]
    for row in rows:
        row["image"] = str(dwarfs / "data" / row["image"])
        for old, new in changes.items():
            value = row.pop(old)
            if new is not None:
                row[new] = value
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reads(modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an encoder of pictures stand for one of another modality."""

    def adapt(encoder: Encoder, _: EncoderConfig) -> Encoder:
        encoder.modality = modality
        return encoder

    monkeypatch.setitem(ADAPTERS, (modality, "image"), adapt)


def test_every_protocol_has_a_test() -> None:
    names = {name for name in recipe_names() if name.startswith("protocols/")}
    tested = {"few-shot", "out-of-distribution", "zero-shot-captions", "zero-shot-video", "second-encoder"}
    assert names == {f"protocols/{name}" for name in tested}


def test_few_shot(dwarfs: Path, tmp_path: Path) -> None:
    data = f"task.train={dwarfs / 'data/train.jsonl'}"
    run = train(dwarfs, "protocols/few-shot", tmp_path / "run", data, "train.samples=0.25")
    [start] = [row for row in read_log(run) if row["event"] == "start"]
    assert start["samples"] == 3


def test_out_of_distribution(dwarfs: Path, tmp_path: Path) -> None:
    data = dwarfs / "data/train.jsonl"
    keys = [f"task.train={data}", f"eval.others.other.task.train={data}"]
    results = perceptune.evaluate(train(dwarfs, "protocols/out-of-distribution", tmp_path / "run", *keys))
    assert results["split"] == "held-out"
    assert set(results["others"]["other"]["gaps"]) == {"accuracy", "accuracy_color"}


def test_zero_shot_after_captions(dwarfs: Path, tmp_path: Path) -> None:
    captions = renamed(dwarfs, tmp_path, prompt=None)
    keys = [f"task.train={captions}", f"eval.others.questions.task.train={dwarfs / 'data/train.jsonl'}"]
    run = train(dwarfs, "protocols/zero-shot-captions", tmp_path / "run", *keys)
    results = perceptune.evaluate(run)
    assert results["others"]["questions"]["evaluated_samples"] == 12
    asked = [json.loads(line)["prompt"] for line in (run / "predictions_questions.jsonl").read_text().splitlines()]
    assert all(asked)


def test_zero_shot_video_from_pictures(
    dwarfs: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads("video", monkeypatch)
    keys = [f"task.train={renamed(dwarfs, tmp_path, image='video')}", f"init_from.run={pictures}"]
    run = train(dwarfs, "protocols/zero-shot-video", tmp_path / "run", *keys, modality="video")
    assert {name.replace("video", "image") for name in tensors(run)} == set(tensors(pictures))
    assert perceptune.evaluate(run)["train_samples"] == 0


def test_one_encoder_after_the_other(
    dwarfs: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads("audio", monkeypatch)
    keys = [
        f"task.train={renamed(dwarfs, tmp_path, image='audio')}",
        f"init_from={pictures}",
        f"encoders.image={dwarfs / 'encoder'}",
    ]
    run = train(dwarfs, "protocols/second-encoder", tmp_path / "run", *keys, modality="audio")
    before, after = tensors(pictures), tensors(run)
    assert all(after[name].equal(before[name]) for name in before)
    assert any("audio" in name for name in after)
    assert read_recipe(run).train.freeze == ("connectors.image", "prompt")
