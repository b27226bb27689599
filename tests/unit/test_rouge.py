"""ROUGE as rouge-score computes it: recorded values, several references, and what holds for all texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceptune.data.metrics import rouge

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/captions.json").read_text(encoding="utf-8"))
KINDS = ("rouge1", "rouge2", "rougeL")
KEYS = {f"{kind}_{value}_{over}" for kind in KINDS for value in ("f1", "recall") for over in ("mean", "best")}
TEXT = st.lists(st.sampled_from(["a", "dog", "runs", "The,", "x-ray", "5", "ü"]), max_size=6).map(" ".join)
SETS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4)
STEADY = settings(deadline=None, derandomize=True, database=None, max_examples=100)


def test_recorded_values() -> None:
    data, wanted = GOLDEN["data"].values(), GOLDEN["rouge"]
    scored = rouge.score([row["hyp"] for row in data], [row["refs"] for row in data])
    assert scored.summary == pytest.approx(wanted["summary"], rel=1e-12)
    for row, expected in zip(scored.per_sample, wanted["per_sample"], strict=True):
        assert row == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    scored = rouge.score(["the cat sat"], [["The cat: sat on it!", "a dog"]])
    assert set(scored.summary) == KEYS, "and not coco-caption's `ROUGE-L`"
    row = scored.per_sample[0]
    assert (row["rouge1_recall_best"], row["rouge1_recall_mean"]) == (0.6, 0.3)
    assert row["rouge1_f1_best"] == pytest.approx(0.75)  # 3 of 3, 3 of 5
    assert row["rouge2_f1_best"] == pytest.approx(2 / 3)  # 2 of 2, 2 of 4


def test_order_counts_in_rouge_l_alone() -> None:
    row = rouge.score(["b a"], [["a b"]]).per_sample[0]
    assert (row["rouge1_f1_best"], row["rouge2_f1_best"], row["rougeL_f1_best"]) == (1, 0, 0.5)


def test_best_is_one_reference() -> None:
    """The reference with the greatest F1, here not the one with the greatest recall."""
    row = rouge.score(["a b c d e f"], [["a", "a b c d x"]]).per_sample[0]
    assert row["rouge1_recall_best"] == pytest.approx(0.8)


@STEADY
@given(SETS)
def test_bounds_and_means(pairs: list[tuple[str, list[str]]]) -> None:
    scored = rouge.score([text for text, _ in pairs], [texts for _, texts in pairs])
    for key, value in scored.summary.items():
        column = [row[key] for row in scored.per_sample]
        assert value == pytest.approx(sum(column) / len(column))
        assert 0 <= min(column) <= max(column) <= 1
        if key.endswith("f1_best"):
            assert all(row[key] >= row[key.replace("best", "mean")] - 1e-12 for row in scored.per_sample)


@STEADY
@given(SETS)
def test_nothing_depends_on_how_samples_and_references_are_ordered(pairs: list[tuple[str, list[str]]]) -> None:
    scored = rouge.score([text for text, _ in pairs], [texts for _, texts in pairs])
    turned = rouge.score([text for text, _ in pairs[::-1]], [texts[::-1] for _, texts in pairs[::-1]])
    for row, other in zip(scored.per_sample, turned.per_sample[::-1], strict=True):
        for key in KEYS:
            if not key.endswith("recall_best"):  # of references with one F1 the first gives its recall
                assert row[key] == pytest.approx(other[key])


def test_empty_texts_and_equal_texts() -> None:
    rows = rouge.score(["", "a", "", "a dog"], [["a"], [""], ["!"], ["A dog.", "A dog."]]).per_sample
    assert all(value == 0 for row in rows[:3] for value in row.values())
    assert all(value == 1 for value in rows[3].values())


def test_definition() -> None:
    definition = rouge.score(["a", "b"], [["a"], ["b", "c"]]).definition
    assert definition["references"] == {"min": 1, "max": 2, "mean": 1.5}
    assert "no stemming" in definition["tokenizer"]
    json.dumps(definition)
    with pytest.raises(ValueError, match="sample 1 has no references"):
        rouge.score(["a", "b"], [["a"], []])
