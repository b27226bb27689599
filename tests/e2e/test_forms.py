"""Data in every form that users have it: recognised, trained on, checked, converted, answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forms
import perceptune
from perceptune.cli.main import run as cli

BRIEF = ["train.steps=2", "train.batch_size=4", "decode.max_new_tokens=2", "decode.beams=1", "train.warmup_steps=1"]


@pytest.mark.parametrize("name", forms.FORMS)
def test_a_form_is_recognised_by_every_command(
    name: str, dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = forms.FORMS[name](tmp_path / "data")
    place, words = case.place, case.words
    models = ["--lm", str(dwarfs / "lm"), "--encoder", str(dwarfs / "encoder")]
    run = tmp_path / "run"

    reported = name in forms.REPORTED  # the evaluation at the end takes most of a case's time
    keys = BRIEF if reported else [*BRIEF, "eval.at_end=false"]
    assert cli(["train", "--data", place, *words, *models, "--run", str(run), *keys]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(place))
    for piece in case.said:
        assert piece in line

    checked = cli(["data", "check", place, *(word for word in words if "=" in word), "--json"])
    found = capsys.readouterr()
    assert checked == (1 if name in forms.WITH_BROKEN_ROWS else 0)
    assert line.split(";")[0] in found.err
    rows = sum(split["rows"] for split in json.loads(found.out)["splits"].values())

    split = [] if len(json.loads(found.out)["splits"]) == 1 else ["--split", "train"]
    flat = str(tmp_path / "flat.jsonl")
    assert cli(["data", "convert", place, "--to", flat, "--media", str(tmp_path / "media"), *split]) == 0
    assert 0 < len(Path(flat).read_text().splitlines()) <= rows
    capsys.readouterr()

    out = tmp_path / "answers.jsonl"
    assert cli(["predict", str(run), case.asked or place, "--out", str(out)]) == 0
    answered = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum("answer" in row for row in answered) >= 3

    if reported:
        results = json.loads((run / "results.json").read_text())
        assert results["split"] == case.split
        assert not results["trained_on_this_split"]


def test_the_written_recipe_is_an_ordinary_one(dwarfs: Path, tmp_path: Path) -> None:
    place = forms.FORMS["classes"](tmp_path / "data").place
    models = ["--lm", str(dwarfs / "lm"), "--encoder", str(dwarfs / "encoder")]
    assert cli(["train", "--data", place, *models, "--run", str(tmp_path / "first"), *BRIEF]) == 0
    recipe = perceptune.load_recipe(tmp_path / "first/run.yaml")
    perceptune.train(recipe, tmp_path / "again")
    one, other = ((tmp_path / run / "method.safetensors").read_bytes() for run in ("first", "again"))
    assert one == other
