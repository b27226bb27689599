"""Ensembles at the command line: `--ensemble RUN` of eval, predict and answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import perceptune
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.models.run_folder import METHOD, RECIPE, read_tensors, write_tensors


@pytest.fixture
def second(run: Path, tmp_path: Path) -> Path:
    """A run like the first with other weights."""
    other = shutil.copytree(run, tmp_path / "second")
    torch.manual_seed(5)
    tensors = read_tensors(other / METHOD)
    write_tensors(other / METHOD, {
        name: one + 0.5 * torch.randn_like(one) if one.is_floating_point() else one for name, one in tensors.items()
    })  # fmt: skip
    return other


def test_each_command_answers_by_all_runs_and_names_them(
    run: Path, second: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = perceptune.load_ensemble([run, second], overrides=["cache.features=off"])
    before = (run / "results.json").read_bytes() if (run / "results.json").is_file() else None
    assert cli(["eval", str(run), "--ensemble", str(second)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ensemble of 2 runs (run, second): each token by the mean of their probabilities" in printed
    results = json.loads((run / "eval/ensemble-second/results.json").read_text())
    assert [member["run"] for member in results["ensemble"]] == ["run", "second"]
    assert results["ensemble"][0]["sha256"] != results["ensemble"][1]["sha256"]
    kept = (run / "results.json").read_bytes() if (run / "results.json").is_file() else None
    assert kept == before, "the run's own results stay"
    assert perceptune.evaluate(run, ensemble=[second])["ensemble"] == results["ensemble"]

    (tmp_path / "two").mkdir()
    shown = [path.rename(tmp_path / "two" / path.name) for path in pictures[:2]]
    asked = [perceptune.Sample(path.name, {"image": path}, "color?") for path in sorted(shown)]
    given = ["predict", str(run), str(tmp_path / "two"), "--prompt", "color?", "--ensemble", str(second)]
    assert cli(given) == 0
    out = run / "predicted_two_ensemble-second.jsonl"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["raw"] for row in rows] == model.answer(asked)
    about = json.loads((run / f"{out.name}.meta.json").read_text())
    assert about["ensemble"] == results["ensemble"]
    assert cli([*given[:-2], "--out", str(out)]) == 2, "the run alone does not go on with the ensemble's answers"

    capsys.readouterr()
    one = ["answer", str(run), "color?", "--image", str(asked[0].media["image"]), "--ensemble", str(second)]
    assert cli([*one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["raw"] == model.answer(asked[:1])[0]


def test_runs_that_do_not_fit_are_refused_in_one_line(
    run: Path, second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (second / RECIPE).read_text()
    (second / RECIPE).write_text(recipe.replace("template: '", "template: 'Well, "))
    assert (second / RECIPE).read_text() != recipe
    assert cli(["eval", str(run), "--ensemble", str(second)]) == 2
    said = capsys.readouterr().err
    assert "cannot answer together: text.template is" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(UserError, match="not a run folder"):
        perceptune.load_ensemble([run, run.parent / "none"])
