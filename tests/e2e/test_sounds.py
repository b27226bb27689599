"""Runs that hear: alone, and beside pictures in one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.data.build_task import make_task
from perceptune.data.media.source import MediaError
from perceptune.errors import UserError
from perceptune.serving.limits import Limits
from perceptune.types import Sample
from servers import load_runs
from sounds import encoded, save_mobilenet, save_sound_encoder, save_sounds, tone


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ast`, `net.pt` and sounds."""
    folder = tmp_path_factory.mktemp("hearing")
    save_sound_encoder(folder / "ast", "ast")
    save_mobilenet(folder / "net.pt")
    save_sounds(folder / "sounds")
    return folder


def mixed_rows(dwarfs: Path, hearing: Path) -> list[dict[str, Any]]:
    """Image only, sound only, both, neither: four times."""
    rows = []
    for i in range(4):
        image, audio = str(dwarfs / f"data/train{i}.png"), str(hearing / f"sounds/train{i}.wav")
        for media in ({"image": image}, {"audio": audio}, {"image": image, "audio": audio}, {"image": None}):
            rows.append(
                {**media, "prompt": "what is it?" if i % 2 else "what?", "targets": ["red", "low"][len(media) - 1]}
            )
    return rows


def mixed_recipe(dwarfs: Path, hearing: Path, data: Path, audio: dict[str, Any], **changes: Any) -> dict[str, Any]:
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data, **changes)
    return given | {"encoders": {"image": str(dwarfs / "encoder"), "audio": audio}}


@pytest.mark.parametrize(("ear", "method"), [("ast", "epalm"), ("net.pt", "epalm-lin"), ("picture", "epalm-lin")])
def test_mixed_samples_answer_and_learn_as_each_alone(
    dwarfs: Path, hearing: Path, tmp_path: Path, ear: str, method: str
) -> None:
    data = tmp_path / "mixed.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(dwarfs, hearing)))
    audio = {"id": str(dwarfs / "vit" if ear == "picture" else hearing / ear)} | (
        {} if ear == "ast" else {"seconds": 0.5}
    )
    given = mixed_recipe(
        dwarfs, hearing, data, audio, method={"name": method, "n_levels": 2}, train=support.train_section(batch_size=8)
    )
    before = perceptune.build(given).method.state_dict()
    perceptune.train(given, tmp_path / "run")
    model = perceptune.load(tmp_path / "run")
    moved = {key for key, value in model.method.state_dict().items() if not torch.equal(value, before[key])}
    for modality in ("image", "audio"):
        assert any(key.startswith(f"connectors.{modality}.maps") for key in moved)
    task = make_task(model.recipe)
    samples = list(task.samples("train"))
    assert [sorted(sample.media) for sample in samples[:4]] == [["image"], ["audio"], ["audio", "image"], []]
    together = model.answer(samples)
    assert together == [model.answer([sample])[0] for sample in samples]
    loss, tokens = model.loss(model.collate(samples))
    alone = [model.loss(model.collate([sample])) for sample in samples]
    torch.testing.assert_close(loss, torch.stack([one for one, _ in alone]).sum(), rtol=1e-4, atol=1e-4)
    assert tokens == sum(count for _, count in alone)
    hushed = [Sample(s.id, {k: v for k, v in s.media.items() if k != "audio"}, s.prompt, s.targets) for s in samples]
    change = (model.loss(model.collate(hushed))[0] - loss).abs()
    assert change > 1e-3  # what is heard does matter


def test_the_recipe_for_sounds_trains_evaluates_and_answers(
    dwarfs: Path, hearing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(hearing / "sounds/train.jsonl"), str(tmp_path / "run")
    small = [f"lm.id={dwarfs / 'lm'}", f"encoders.audio.id={dwarfs / 'encoder'}", "method.n_levels=2", "train.steps=2"]
    small += [
        "train.batch_size=2",
        "encoders.audio.seconds=0.5",
        "encoders.audio.views=2",
        "encoders.audio.time_mask=9",
    ]
    assert cli(["train", "audio", "--data", data, "--validation", data, "--run", run, *small]) == 0
    assert perceptune.load(run).recipe.encoders.keys() == {"audio"}
    assert cli(["eval", run]) == 0
    assert "media shuffled" in capsys.readouterr().out
    assert cli(["answer", run, "--audio", str(hearing / "sounds/train1.wav"), "pitch?"]) == 0
    assert cli(["answer", run, "--audio", str(hearing / "sounds/train.jsonl"), "pitch?"]) == 2
    assert "train.jsonl: not an audio file" in capsys.readouterr().err


def test_a_sound_that_cannot_be_used_is_named_or_counted(dwarfs: Path, hearing: Path, tmp_path: Path) -> None:
    data = save_sounds(tmp_path / "sounds")
    (tmp_path / "sounds/train3.wav").write_bytes(encoded(tone() * 0))
    (tmp_path / "sounds/train4.wav").write_bytes(b"hello, this is text, not an audio file")
    audio = {"audio": {"id": str(hearing / "ast")}}
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data) | {"encoders": audio}
    with pytest.raises(UserError, match=r"train[34]\.wav: (silent|not an audio file)"):
        perceptune.train(given, tmp_path / "run")
    given["train"] = support.train_section(max_bad_media=2)
    given["task"] = {"name": "jsonl", "train": str(data)}
    perceptune.train(given, tmp_path / "tolerant")
    # More frames in a spectrogram than `--video-frames`, which is about clips.
    assert load_runs([str(tmp_path / "tolerant")], Limits(video_frames=1))
    listed = (tmp_path / "tolerant/bad_media.jsonl").read_text()
    assert "train3.wav: silent" in listed
    assert "train4.wav: not an audio file" in listed
    model = perceptune.load(tmp_path / "tolerant")
    with pytest.raises(MediaError, match="audio: silent"):
        model.answer([Sample("x", {"audio": encoded(tone() * 0)}, "pitch?")])
    with pytest.raises(UserError, match="sample `x` has `image`, for which this model has no encoder"):
        model.answer([Sample("x", {"image": b"y"}, "pitch?")])
