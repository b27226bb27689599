"""`eval.at_end`: a training evaluates its run, and prints a report that `eval --report` prints again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import blips
import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.config.recipe import load_recipe
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.models.run_folder import RECIPE
from perceptune.training.trainer import Trainer
from runs import recipe


@pytest.fixture(scope="module")
def held(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = support.save_data(tmp_path_factory.mktemp("held"), rows=24)
    train = support.train_section(steps=30, hold_out={"media": 12})
    return recipe(dwarfs, task={"name": "jsonl", "train": str(data)}, train=train, eval={"at_end": True, "every": 15})


def test_a_training_reports_on_what_it_held_out(
    held: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (tmp_path / "held.yaml").write_text(json.dumps(held))
    assert cli(["train", str(tmp_path / "held.yaml"), "--run", str(run)]) == 0
    shown = capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    assert (results["split"], results["evaluated_samples"]) == ("test", 6)
    assert not results["trained_on_this_split"]
    assert f"accuracy {results['accuracy']:.3f}" in shown
    assert "on 6 samples with 6 media of split `test`" in shown
    assert f"media shuffled: {results['accuracy_shuffled']:.3f}" in shown
    assert f"without media: {results['accuracy_no_media']:.3f}" in shown
    task = make_task(load_recipe(str(run / RECIPE)))
    answers = [sample.targets[0] for sample in task.samples("train")]
    most = max(dict.fromkeys(answers), key=answers.count)
    reported = task.samples("test")
    score = sum(sample.targets[0] == most for sample in reported) / len(reported)
    assert f"always `{most}`: {score:.3f}" in shown
    assert "what to try next:\n  - " in shown
    again = perceptune.evaluate(run)
    assert {k: v for k, v in again.items() if k != "command"} == {k: v for k, v in results.items() if k != "command"}
    assert cli(["eval", str(run), "--report"]) == 0
    assert shown[shown.index("accuracy") :].strip() in capsys.readouterr().out
    assert cli(["eval", str(run), "--report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["always"] == {"answer": most, "score": score}


def test_the_written_recipe_evaluates_again(held: dict[str, Any], tmp_path: Path) -> None:
    perceptune.train(held, tmp_path / "one", overrides=["train.steps=2"])
    perceptune.train(str(tmp_path / "one" / RECIPE), tmp_path / "two")
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    changing = {"train_seconds", "samples_per_second"}
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in second.items() if k not in changing
    }


def test_a_model_that_needs_its_medium_has_no_control_without(tmp_path: Path) -> None:
    given = blips.recipe(blips.save_blip(tmp_path / "blip", "llama"), support.save_data(tmp_path / "data"))
    given["train"], given["eval"] = support.train_section(steps=1), {"at_end": True}
    perceptune.train(given, tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert "accuracy_shuffled" in results
    assert "accuracy_no_media" not in results
    with pytest.raises(UserError, match=r"`backbone: instructblip` cannot answer without media: .*--no-media"):
        perceptune.evaluate(tmp_path / "run", no_media=True)
    assert cli(["eval", str(tmp_path / "run"), "--report"]) == 0


def test_an_interrupted_training_is_not_evaluated(
    held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, *given: step(self, *given) or self.state.step == 3)
    assert perceptune.train(held, tmp_path / "run").interrupted
    assert not (tmp_path / "run/results.json").exists()


def test_what_could_not_be_evaluated_is_said_before_the_training(held: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shuffled control needs two different media"):
        perceptune.train(held, tmp_path / "run", overrides=["eval.samples=1"])
    assert not (tmp_path / "run" / "log.jsonl").exists()
