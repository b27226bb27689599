"""Comparisons on dwarfs: equal terms, chosen without the test split, finished runs never repeated."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comparisons import command, write_recipe
from forks import Fork
from perceptune.cli.main import run as cli
from perceptune.config.recipe import load_recipe
from perceptune.data.build_task import make_task
from perceptune.data.tasks.base import ROUGE
from perceptune.tools.compare import report
from perceptune.tools.compare import run as comparing
from perceptune.tools.compare.plan import make_plan
from perceptune.training import trainer
from perceptune.utils.run_log import read_log

GRID = ["--grid", "train.lr+train.prompt_lr=1e-4,1e-2"]
METHODS = ["--methods", "epalm,epalm-lin"]


@pytest.fixture(scope="module")
def written(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("compare"), dwarfs)


def without_times(result: Any) -> Any:
    """A table but for what a clock gave."""
    if isinstance(result, dict):
        return {k: without_times(v) for k, v in result.items() if k not in ("samples_per_second", "train_seconds")}
    return [without_times(one) for one in result] if isinstance(result, list) else result


@pytest.fixture(scope="module")
def compared(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    assert cli(command(written, out, *METHODS, *GRID, "--seeds", "3,5", "train.steps=10", "train.batch_size=4")) == 0
    return out


def test_each_method_is_chosen_on_held_out_data_and_tested_once(compared: Path) -> None:
    result = json.loads((compared / "compare.json").read_text())
    assert (result["select_on"], result["test_on"], result["test_samples"]) == ("held-out", "test", 8)
    assert [row["label"] for row in result["rows"]] == ["epalm", "epalm-lin"]
    for row in result["rows"]:
        assert len(row["validation"]) == 2
        best = max(row["validation"], key=row["validation"].get)
        assert best == ", ".join(f"{key}={value}" for key, value in row["setting"].items())
        assert row["setting"]["train.lr"] == row["setting"]["train.prompt_lr"]
        assert list(row["by_seed"]) == ["3", "5"]
        assert row["accuracy"] == pytest.approx(sum(row["by_seed"].values()) / 2)
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        folders = sorted((compared / "runs" / row["label"]).glob("*/seed-*"))
        assert len(folders) == 3, "two settings with the first seed, the chosen one with the second"
        for folder in folders:
            tested = (folder / "results.json").is_file()
            assert tested == (f"train.lr={row['setting']['train.lr']}," in folder.parent.name), "tested if chosen"
    lin = result["rows"][1]
    assert lin["trained"] == 24 * 32 + 32
    assert lin["samples_per_second"] > 0


def test_the_best_validation_value_wins_and_of_equals_the_first(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {0.1: 0.2, 0.2: 0.7, 0.3: 0.7, 0.4: 0.1}
    plan = make_plan([str(written)], ["method.n_levels=2"], grid={"train.lr": [*values]})
    asked = []

    def judged(run: Any, split: str, *_: Any) -> dict[str, float]:
        asked.append((split, run.recipe.seed))
        return {"accuracy": values[run.recipe.train.lr]}

    monkeypatch.setattr(comparing, "_trained", lambda _: None)
    monkeypatch.setattr(comparing, "_evaluated", judged)
    setting, found = comparing._select(plan, plan.entries[0], tmp_path, lambda _: None)
    assert setting == {"train.lr": 0.2}
    assert [*found.values()] == [*values.values()]
    assert asked == [("held-out", 0)] * 4


@pytest.mark.parametrize("into", ["run", "run/selection-all"])
def test_only_the_test_is_evaluated_with_controls(
    written: Path, tmp_path: Path, into: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What selects, and what estimates the duration of an answer, answers each sample once."""
    plan = make_plan([str(written)], ["method.n_levels=2", "eval.no_media_control=true", "eval.shuffled_control=true"])
    given: list[dict[str, Any]] = []

    def evaluated(_: Any, **options: Any) -> dict[str, Any]:
        given.append(options)
        folder = Path(options["into"])
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")
        return {}

    monkeypatch.setattr(comparing, "evaluate", evaluated)
    run = comparing._Run(plan.entries[0].recipe, tmp_path / "run")
    comparing._evaluated(run, "held-out", None, tmp_path / into)
    wanted = None if into == "run" else False
    assert [(one.get("control"), one.get("no_media")) for one in given] == [(wanted, wanted)]


def test_no_setting_is_evaluated_on_the_test_before_it_is_selected(written: Path) -> None:
    plan = make_plan([str(written)], ["method.n_levels=2", "eval.at_end=true"])
    assert {(row.recipe.eval.at_end, row.recipe.eval.shuffled_control) for row in plan.entries} == {(False, True)}


def test_a_probe_answers_each_sample_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan([str(written)], ["method.n_levels=2", "eval.no_media_control=true"])
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(comparing, "build_to_train", lambda *_, **__: None)
    monkeypatch.setattr(comparing, "train", lambda *_, **__: None)
    monkeypatch.setattr(comparing, "evaluate", lambda _, **options: given.append(options) or {"evaluated_samples": 1})
    comparing._probe(plan.entries[0], plan)
    assert {(one["control"], one["no_media"]) for one in given} == {(False, False)}


def test_all_runs_have_the_same_samples_and_steps(compared: Path) -> None:
    runs = [path.parent for path in compared.glob("runs/*/*/*/run.yaml")]
    assert len(runs) == 6
    logs = [read_log(run) for run in runs]
    assert {(log[-1]["step"], log[-1]["samples"]) for log in logs} == {(10, 40)}
    held = make_task(load_recipe(runs[0] / "run.yaml"))
    out = {sample.id for sample in held.samples("held-out")}
    assert len(out) == 2, "a tenth of sixteen"
    recipes = [load_recipe(run / "run.yaml") for run in runs]
    assert {recipe.train.hold_out for recipe in recipes} == {0.1}
    assert {recipe.seed for recipe in recipes} == {3, 5}


def test_the_table_is_written_four_ways(compared: Path) -> None:
    result = json.loads((compared / "compare.json").read_text())
    with (compared / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in result["rows"]]
    text = (compared / "compare.md").read_text()
    assert f"{result['rows'][0]['trained']:,}" in text
    assert "40 training samples each; 8 samples of `test`, seeds 3, 5; each row's setting is the best of 2" in text
    with Image.open(compared / "compare.png") as picture:
        assert picture.size == (860, 520)


def test_without_matplotlib_the_table_is_written_and_the_extra_named(
    compared: Path, written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs are there already: the same command makes the table alone."""
    before = without_times(json.loads((compared / "compare.json").read_text()))
    for name in ("compare.json", "compare.png"):
        (compared / name).rename(compared / f"kept-{name}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert (
        cli(command(written, compared, *METHODS, *GRID, "--seeds", "3,5", "train.steps=10", "train.batch_size=4")) == 0
    )
    said = capsys.readouterr()
    assert "pip install 'perceptune[plots]'" in said.err
    assert ".png" not in said.out
    assert without_times(json.loads((compared / "compare.json").read_text())) == before
    assert not (compared / "compare.png").exists()
    (compared / "kept-compare.png").rename(compared / "compare.png")


def test_rouge_of_captions_has_its_columns(compared: Path) -> None:
    result = json.loads((compared / "compare.json").read_text())
    plain = report.cells(result)
    for number, row in enumerate(result["rows"]):
        row["means"] |= {key: number + place / 8 for place, key in enumerate(ROUGE)}
    heading, first, second = report.cells(result)
    shown = ["rouge1_f1_mean", "rouge1_recall_mean", "rougeL_f1_mean", "rougeL_recall_mean"]
    assert heading == [*plain[0][:-1], *shown, plain[0][-1]]
    at = heading.index("rougeL_f1_mean")
    place = ROUGE.index("rougeL_f1_mean") / 8
    assert (float(first[at]), float(second[at])) == pytest.approx((place, 1 + place), abs=1e-3)
    rows = list(csv.DictReader(report.as_csv(result).splitlines()))
    assert [float(row["rougeL_f1_mean"]) for row in rows] == [place, 1 + place]


def test_what_is_finished_is_not_repeated(compared: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.glob("runs/**/*") if path.is_file()}
    table = json.loads((compared / "compare.json").read_text())
    monkeypatch.setattr(comparing, "train", None)
    monkeypatch.setattr(comparing, "evaluate", None)
    same = [*METHODS, *GRID, "train.steps=10", "train.batch_size=4"]
    assert cli(command(written, compared, *same, "--seeds", "3,5")) == 0
    assert json.loads((compared / "compare.json").read_text()) == table
    assert {path: path.stat().st_mtime_ns for path in compared.glob("runs/**/*") if path.is_file()} == before


def test_a_run_of_another_recipe_is_not_taken_for_ours(
    compared: Path, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli(command(written, compared, *METHODS, *GRID, "--seeds", "3,5", "train.steps=11", "train.batch_size=4")) == 2
    )
    assert "was started with train.steps = 10, the recipe now says 11" in capsys.readouterr().err


def test_kill_9_and_again_gives_the_same_table(written: Path, tmp_path: Path) -> None:
    """Killed within the second run, when the first is finished; then in one go elsewhere."""
    keys = ["--seeds", "0,1", "train.steps=30", "train.save_every=5", "eval.samples=4"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    second = killed / "runs/epalm/as-given/seed-1"
    deadline = time.monotonic() + 600
    with Fork(lambda: cli(command(written, killed, *keys))) as child:
        while not any(row.get("step", 0) >= 7 for row in read_log(second)):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    first = killed / "runs/epalm/as-given/seed-0"
    assert not (killed / "compare.json").exists()
    before = {
        path: path.stat().st_mtime_ns for path in first.glob("*") if path.name in ("method.safetensors", "log.jsonl")
    }
    assert len(before) == 2
    for out in (killed, whole):
        assert cli(command(written, out, *keys)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    tables = [json.loads((out / "compare.json").read_text()) for out in (killed, whole)]
    assert without_times(tables[0]) == without_times(tables[1])
    assert [row["step"] for row in read_log(second) if row["event"] == "step"] == [*range(1, 31)]


def test_a_dry_run_counts_and_estimates_without_leaving_anything(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], compared: Path
) -> None:
    out = tmp_path / "out"
    assert cli(command(written, out, *METHODS, *GRID, "--seeds", "0,1,2", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "8 runs, 8 of them still to do: about" in said
    assert "2 settings each, chosen on `held-out`; tested on `test`" in said
    assert "epalm-lin" in said
    assert not out.exists()
    same = [*METHODS, *GRID, "--seeds", "3,5", "train.steps=10", "train.batch_size=4", "--dry-run", "--json"]
    assert cli(command(written, compared, *same)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["left"], found["minutes"]) == (6, 0, 0)


def test_the_estimate_follows_the_work(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    minutes = []
    for steps in (100, 100_000):
        assert cli(command(written, tmp_path / "out", "--dry-run", "--json", f"train.steps={steps}")) == 0
        minutes.append(json.loads(capsys.readouterr().out)["minutes"])
    assert minutes[1] > 20 * minutes[0] > 0


def test_ctrl_c_ends_the_comparison(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step: Callable[..., bool] = trainer.Trainer._step

    def interrupted(self: trainer.Trainer, *given: Any) -> bool:
        step(self, *given)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", interrupted)
        assert cli(command(written, tmp_path / "out", *METHODS)) == 130
    assert len([*tmp_path.glob("out/runs/*/*/*/run.yaml")]) == 1
    shutil.rmtree(tmp_path / "out")
