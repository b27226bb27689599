"""Training on clips, asking about one, and a broken one: with the frames of an image encoder averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clips
import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"video": str(path), "prompt": "how long?", "targets": ["short" if number < 2 else "long"]}
        for number, path in enumerate(clips.save_clips(tmp_path / "clips"))
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("views", [0, 2])
def test_clips_train_evaluate_and_answer(
    dwarfs: Path, data: Path, tmp_path: Path, views: int, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = {"id": str(dwarfs / "encoder"), "frames": 3, "views": views}
    given = support.recipe(
        dwarfs / "lm", dwarfs / "encoder", data, encoders={"video": encoder}, cache={"dir": str(tmp_path / "cache")}
    )
    perceptune.train(given, tmp_path / "run")
    results = perceptune.evaluate(tmp_path / "run", split="train", control=True)
    assert 0 <= results["accuracy"] <= 1
    capsys.readouterr()
    assert cli(["answer", str(tmp_path / "run"), "--video", str(tmp_path / "clips" / "0.mp4"), "how long?"]) == 0
    [written] = [
        row for row in map(json.loads, (tmp_path / "run" / "predictions.jsonl").read_text().splitlines())
        if row["media"]["video"].endswith("/0.mp4")
    ]  # fmt: skip
    assert capsys.readouterr().out.strip() == written["answer"].strip()


def test_a_broken_clip_stops_the_run_by_name(dwarfs: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "clips" / "2.mp4").write_bytes((tmp_path / "clips" / "2.mp4").read_bytes()[:500])
    given = support.recipe(
        dwarfs / "lm", dwarfs / "encoder", data, encoders={"video": str(dwarfs / "encoder")}, cache={"features": "off"}
    )
    with pytest.raises(UserError, match=r"2\.mp4: damaged video"):
        perceptune.train(given, tmp_path / "run")
