"""`eval`: any task, controls, stored predictions, ranked choices, and what is noted about how numbers were made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
from perceptune.cli.main import run as cli
from perceptune.config.recipe import load_recipe
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.evaluation.controls import shuffle_media
from perceptune.models.base import AdaptedModel
from perceptune.models.build import build
from runs import recipe


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluating") / "run"
    perceptune.train(recipe(dwarfs), run)
    return run


@pytest.fixture
def other(dwarfs: Path, tmp_path: Path) -> Path:
    """Another file of the same pictures: fewer rows, other words, choices, and answers of three words or more."""
    folder = shutil.copytree(dwarfs / "data", tmp_path / "other")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()][:7]
    rows = [{**row, "prompt": "which?", "targets": [f"a {row['targets'][0]} picture", "one color"],
             "choices": ["red", "no", f"a {row['targets'][0]} picture"]} for row in rows]  # fmt: skip
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "other.jsonl"


def predictions(folder: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


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


def test_a_question_is_answered_once_in_all_passes(run: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt for all, as in captioning: shuffled media ask nothing new, and without media all ask the same."""
    rows = [json.loads(line) for line in other.read_text().splitlines()]
    repeated = [{**row, "targets": [f"{row['targets'][0]} again"]} for row in rows]
    other.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *repeated]))
    asked: list[perceptune.Sample] = []
    whole = AdaptedModel.answer

    def counted(model: AdaptedModel, samples: Sequence[perceptune.Sample], **options: Any) -> list[str]:
        asked.extend(samples)
        return whole(model, samples, **options)

    monkeypatch.setattr(AdaptedModel, "answer", counted)
    perceptune.evaluate(run, task={"name": "jsonl", "train": other}, control=True, no_media=True, into=run / "x")
    distinct = {row["image"] for row in rows}
    assert len(asked) == len(distinct) + 1
    model, shuffled = perceptune.load(run), predictions(run / "x", "predictions_shuffled.jsonl")
    assert len(shuffled) == 2 * len(rows)
    assert [row["raw"] for row in shuffled] == whole(
        model, [perceptune.Sample("x", {"image": Path(row["media"]["image"])}, row["prompt"]) for row in shuffled]
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


def test_choices_are_ranked_as_a_forward_over_them_does(run: Path, other: Path) -> None:
    keys = ["eval.rank=choices"]
    task = {"name": "jsonl", "train": str(other)}
    results = perceptune.evaluate(run, task=task, overrides=keys, into=run / "ranked")
    rows = predictions(run / "ranked")
    model = perceptune.load(run)
    for row in rows:
        sample = perceptune.Sample(row["id"], {"image": Path(row["media"]["image"])}, row["prompt"])
        expected = []
        for choice in row["meta"]["choices"]:
            with torch.no_grad():
                loss, count = model.loss(model.collate([sample], [choice]))
            expected.append(-float(loss))
            normalized = model.rank([sample], [[choice]], normalize=True)[0][0]
            assert normalized == pytest.approx(-float(loss) / count, abs=1e-5)
        assert row["logprobs"] == pytest.approx(expected, rel=1e-6, abs=1e-5)
        assert row["raw"] == row["meta"]["choices"][expected.index(max(expected))]
    assert results["accuracy"] == sum(row["raw"] in row["targets"] for row in rows) / 7
    assert results["rank"] == "choices"
    per_token = perceptune.evaluate(run, task=task, overrides=[*keys, "eval.rank_normalize=true"], into=run / "n")
    assert per_token["rank_normalize"]
    assert predictions(run / "n")[0]["logprobs"][2] > rows[0]["logprobs"][2], "a mean, not a sum"
    with pytest.raises(UserError, match=r"has no list `choices`"):
        perceptune.evaluate(run, overrides=keys)


def test_one_question_about_many_media_is_ranked_as_about_each(dwarfs: Path) -> None:
    method = {"name": "epalm", "n_levels": 2, "prompt": "plain", "prompt_at": "first_injected"}
    model = build(load_recipe(recipe(dwarfs, method=method)))
    assert model.reuses_texts
    samples = [perceptune.Sample(str(n), {"image": dwarfs / f"data/train{n}.png"}, "color?") for n in range(5)]
    names = [["red", "green", "red green", "blue"]] * 5
    together = model.rank(samples, names, batch_size=8)
    for sample, own in zip(samples, together, strict=True):
        assert model.rank([sample], names[:1])[0] == pytest.approx(own, abs=1e-5)


def literal(model: AdaptedModel, sample: perceptune.Sample, answer: list[int]) -> list[float]:
    """Log-probabilities of an answer's tokens by one forward over prompt and answer through every layer."""
    prompt = model.text.prompt_ids(sample)
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = model.lm(
            ids, torch.ones_like(ids), model.method.build_slots(model.encode([sample]), 1), use_reference_path=True
        )[0]
    chances = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [float(row[token]) for row, token in zip(chances, answer, strict=True)]


def test_a_single_question_has_choices_and_log_probabilities(
    run: Path, dwarfs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = dwarfs / "data/train0.png"
    model = perceptune.load(run)
    sample = perceptune.Sample("x", {"image": image}, "color?")
    for beams in (1, 3):
        words = ["answer", str(run), "color?", "--image", str(image), "--logprobs", "--json", f"decode.beams={beams}"]
        assert cli(words) == 0
        found = json.loads(capsys.readouterr().out)
        text = "".join(token for token, _ in found["tokens"] if token != "</s>")
        assert text == found["raw"]
        ids = model.text.tokenizer.convert_tokens_to_ids([token for token, _ in found["tokens"]])
        assert [value for _, value in found["tokens"]] == pytest.approx(literal(model, sample, ids), abs=1e-5)
        assert len(ids) == 6, "the limit ended it, so there is no end token"
    [whole] = model.token_logprobs([sample])
    model.text.eos = model.text.tokenizer.convert_tokens_to_ids(whole[1][0])
    first = next(i for i, (token, _) in enumerate(whole) if token == whole[1][0])
    [short] = model.token_logprobs([sample])
    assert [token for token, _ in short] == [token for token, _ in whole[: first + 1]], "with the end token that came"
    assert cli(["answer", str(run), "color?", "--image", str(image), "--choices", "red, blue", "--json"]) == 0
    ranked = json.loads(capsys.readouterr().out)
    assert [*ranked["logprobs"].values()] == sorted(ranked["logprobs"].values(), reverse=True)
    assert ranked["answer"] == next(iter(ranked["logprobs"]))
    assert cli(["answer", str(run), "color?", "--image", str(image), "--choices", "red", "--json"]) == 2
    assert cli(["answer", str(run), "color?", "--image", str(image), "--choices"]) == 2
    assert "--choices: this run has no `task.choices` in its recipe" in capsys.readouterr().err


def test_a_closed_set_is_told_class_by_class(
    run: Path, dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (run / "run.yaml").read_text()
    names = ["red", "green", "blue", "gray"]
    (run / "run.yaml").write_text(given.replace("task:\n", f"task:\n  choices: {json.dumps(names)}\n", 1))
    words = ["eval", str(run), "--control", "eval.rank=choices"]
    monkeypatch.setenv("COLUMNS", "200")
    assert cli(words) == 0
    said = capsys.readouterr().out
    found = json.loads((run / "results.json").read_text())
    assert found["metrics"] == ["accuracy", "accuracy_color", "macro_f1"]
    assert found["confusion"]["classes"] == names
    assert sum(map(sum, found["confusion"]["counts"])) == found["evaluated_samples"] == 12
    assert found["macro_f1_interval"][0] <= found["macro_f1"] <= found["macro_f1_interval"][1]
    assert found["gap_macro_f1"] == pytest.approx(found["macro_f1"] - found["macro_f1_shuffled"])
    assert all(row["meta"]["choices"] == names for row in predictions(run))
    assert "answers (columns) to the samples of each class (rows)" in said
    assert "(other)" in said
    assert "answers (columns)" in (run / "README.md").read_text()
    assert cli(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    assert ">Classes</h2>" in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    assert cli(["eval", str(run), "--predictions", str(run / "predictions.jsonl"), "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    for key in ("confusion", "definition", "metrics", "macro_f1", "macro_f1_interval"):
        assert again[key] == found[key]
    capsys.readouterr()
    image = str(dwarfs / "data/train0.png")
    answers = []
    for choices in (["--choices"], ["--choices", ",".join(names)]):
        assert cli(["answer", str(run), "color?", "--image", image, "--json", *choices]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]


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
