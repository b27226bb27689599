"""`eval`: any task, controls, stored predictions, and what is noted about how numbers were made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import perceptune
from perceptune.cli.main import run as cli
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.evaluation.controls import shuffle_media
from runs import predictions, recipe


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluating") / "run"
    perceptune.train(recipe(dwarfs), run)
    return run


def test_any_task_is_evaluated_apart_from_the_runs_own(
    run: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = perceptune.evaluate(run)
    before = (run / "results.json").read_bytes()
    assert cli(["eval", str(run), "--data", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((run / "eval/other/results.json").read_text())
    assert (run / "results.json").read_bytes() == before
    assert (found["evaluated_samples"], own["evaluated_samples"]) == (7, 12)
    assert "others" not in found
    assert {row["prompt"] for row in predictions(run / "eval/other")} == {"which?"}
    assert not found["trained_on_this_split"]
    repeated = {"name": "jsonl", "train": own["data"]["validation"]}
    assert perceptune.evaluate(run, task=repeated, into=run / "x")["trained_on_this_split"]
    assert cli(["eval", str(run), "--task", "jsnl", "--data", str(other)]) == 2
    assert "did you mean `jsonl`" in capsys.readouterr().err
    assert cli(["eval", str(run), "--data", str(other), "--split", "test"]) == 0
    assert (run / "eval/other-test/results.json").is_file()


def test_what_can_fail_fails_before_the_first_answer(
    run: Path, other: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "perceptune.evaluation.runner.predict_and_score", lambda *_, **__: pytest.fail("it was answered")
    )
    (run / "eval").write_text("a file where the results' folder would be")
    assert cli(["eval", str(run), "--data", str(other)]) == 2
    assert f"{run / 'eval/other'}: cannot be written" in (said := capsys.readouterr().err)
    assert "--out" in said


def test_how_the_numbers_were_made_is_noted(run: Path, dwarfs: Path) -> None:
    assert cli(["eval", str(run), "--samples", "5", "decode.max_new_tokens=3"]) == 0
    noted = json.loads((run / "results.json").read_text())
    meta = json.loads((run / "meta.json").read_text())
    assert noted["command"] == f"perceptune eval {run} --samples 5 decode.max_new_tokens=3"
    assert (noted["evaluated_samples"], noted["seed"], noted["split"]) == (5, 0, "validation")
    assert noted["decoding"]["max_new_tokens"] == 3
    assert noted["template"] == "Question: {prompt} Answer:"
    assert set(noted["versions"]) == {"perceptune", "torch", "transformers"}
    assert {name: noted["models"][name] for name in meta["base"]} == meta["base"]
    assert len(noted["models"]["method"]["sha256"]) == 64
    assert noted["definition"]
    assert noted["data"]["samples"] == 5
    assert noted["data"]["train"] == str(dwarfs / "data/train.jsonl")
    again = perceptune.evaluate(run, samples=5)
    assert again["data"] == noted["data"]
    assert perceptune.evaluate(run, samples=6)["data"]["sha256"] != noted["data"]["sha256"]


def test_without_media_the_same_questions_are_answered_blind(run: Path) -> None:
    assert cli(["eval", str(run), "--control", "--no-media"]) == 0
    results = json.loads((run / "results.json").read_text())
    rows, blind = predictions(run), predictions(run, "predictions_no_media.jsonl")
    model = perceptune.load(run)
    expected = model.answer([perceptune.Sample(row["id"], {}, row["prompt"]) for row in rows])
    assert [row["raw"] for row in blind] == expected
    assert all(row["media"] == {} for row in blind)
    assert [(row["id"], row["prompt"], row["targets"]) for row in blind] == [
        (row["id"], row["prompt"], row["targets"]) for row in rows
    ]
    for name in ("shuffled", "no_media"):
        gap = "gap" if name == "shuffled" else "gap_no_media"
        assert results[gap] == pytest.approx(results["accuracy"] - results[f"accuracy_{name}"])
        low, high = results[f"{gap}_interval"]
        assert low <= results[gap] <= high
    perceptune.evaluate(run)
    assert not (run / "predictions_no_media.jsonl").exists(), "it would not belong to these results"


def test_a_question_is_answered_once_in_all_passes(run: Path, other: Path, asked: list[perceptune.Sample]) -> None:
    """One prompt for all, as in captioning: shuffled media ask nothing new, and without media all ask the same."""
    rows = [json.loads(line) for line in other.read_text().splitlines()]
    repeated = [{**row, "targets": [f"{row['targets'][0]} again"]} for row in rows]
    other.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *repeated]))
    perceptune.evaluate(run, task={"name": "jsonl", "train": other}, control=True, no_media=True, into=run / "x")
    distinct = {row["image"] for row in rows}
    assert len(asked) == len(distinct) + 1
    model, shuffled = perceptune.load(run), predictions(run / "x", "predictions_shuffled.jsonl")
    assert len(shuffled) == 2 * len(rows)
    assert [row["raw"] for row in shuffled] == model.answer(
        [perceptune.Sample("x", {"image": Path(row["media"]["image"])}, row["prompt"]) for row in shuffled]
    )


def test_stored_predictions_are_scored_without_the_model(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = perceptune.evaluate(run)
    file = shutil.copy(run / "predictions.jsonl", tmp_path / "theirs.jsonl")
    monkeypatch.setattr("perceptune.models.run_folder.build", lambda *_, **__: pytest.fail("the model was built"))
    assert cli(["eval", str(run), "--predictions", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for key in (*made["metrics"], "accuracy_interval", "definition", "data", "trained_on_this_split"):
        assert found[key] == made[key]
    assert found["trained_on_this_split"], "validation is the training file here"
    assert predictions(run / "eval/theirs") == predictions(run)
    rows = predictions(run)
    right = [{"id": row["id"], "answer": row["targets"][0]} for row in reversed(rows)]
    for given, words in (
        (right, None),
        (right[1:], r"1 of 12 evaluated samples have no answer in it, first `train-000012`|first `validation-000012`"),
        ([*right, right[0]], "line 13: a second answer to"),
        ([*right, {"id": "validation-000099", "raw": "x"}], "is none of the 12 evaluated samples; did you mean"),
        ([{"id": 1}], "needs a string `raw`, `answer` or `prediction`"),
        ([{"id": "a", "error": "no such file"}], "`a` was not answered: no such file"),
    ):
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in given))
        code = cli(["eval", str(run), "--predictions", str(file), "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert code == (2 if words else 0)
        if words is not None:
            assert any(part in said for part in words.split("|")), said
    assert json.loads((tmp_path / "out/results.json").read_text())["accuracy"] == 1.0
    table = tmp_path / "theirs.csv"
    table.write_text("id;prediction\n" + "".join(f"{row['id']};{row['answer']}\n" for row in right))
    assert cli(["eval", str(run), "--predictions", str(table), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    assert cli(["eval", str(run), "--predictions", str(file), "--no-media"]) == 2
    assert cli(["eval", str(run), "--predictions", str(run / "predictions.jsonl"), "--out", str(run)]) == 2
    assert "would overwrite it" in capsys.readouterr().err


def test_the_best_checkpoint_is_never_chosen_on_a_test_split(dwarfs: Path, tmp_path: Path) -> None:
    data = str(dwarfs / "data/train.jsonl")
    task = {"name": "jsonl", "train": data, "test": data}
    with pytest.raises(UserError, match=r"`eval\.during_split: test` would choose the best checkpoint on test data"):
        perceptune.train(recipe(dwarfs, task=task, eval={"every": 2, "during_split": "test"}), tmp_path / "a")
    with pytest.raises(UserError, match="chooses the best checkpoint on a `validation` split"):
        perceptune.train(recipe(dwarfs, task=task, eval={"every": 2}), tmp_path / "b")


def said_by_rule(_: Any, samples: Sequence[perceptune.Sample], **__: Any) -> list[str]:
    """Answers that differ with and without a picture, and from picture to picture."""
    pictures = [str(sample.media.get("image", "")) for sample in samples]
    return ["a red picture of it" if picture.endswith("0.png") else "one color" for picture in pictures]


def test_corpus_values_have_intervals_of_their_own(run: Path, other: Path) -> None:
    """BLEU is no mean over samples: its interval and gap resample what it is made of."""
    task = {"name": "leaves.captions", "train": str(other)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perceptune.models.base.AdaptedModel.answer", said_by_rule)
        results = perceptune.evaluate(run, task=task, no_media=True, into=run / "c")
    for key in results["metrics"]:
        low, high = results[f"{key}_interval"]
        assert low <= results[key] <= high
    for key in ("BLEU-1", "CIDEr"):
        low, high = results[f"gap_{key}_no_media_interval"]
        assert low <= results[f"gap_{key}_no_media"] <= high
    assert results["gap_BLEU-1_no_media"] == pytest.approx(results["BLEU-1"] - results["BLEU-1_no_media"])
    assert results["definition"]["df"]["documents"] == 7


def test_the_derangement_is_that_of_the_seed(run: Path) -> None:
    samples = list(make_task(perceptune.load(run).recipe).samples("train"))
    moved = shuffle_media(samples, 0)
    assert all(a.media != b.media and a.prompt == b.prompt for a, b in zip(samples, moved, strict=True))
    assert moved == shuffle_media(samples, 0)
    assert moved != shuffle_media(samples, 1)
