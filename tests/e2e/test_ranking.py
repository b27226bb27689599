"""Ranked choices: in `eval`, for one question, and class by class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import perceptune
from perceptune.cli.main import run as cli
from perceptune.config.recipe import load_recipe
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.models.build import build
from runs import predictions, recipe


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluating") / "run"
    perceptune.train(recipe(dwarfs), run)
    return run


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
