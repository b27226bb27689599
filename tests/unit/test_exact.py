"""Exact match: any reference counts, whitespace does not, groups are averaged apart."""

from __future__ import annotations

import pytest

from perceptune.data.metrics import exact
from perceptune.data.metrics.base import group_key


def test_any_reference_counts() -> None:
    scored = exact.score(["cat", "dog"], [["a cat", "cat"], ["cat"]])
    assert scored.summary == {"accuracy": 0.5}
    assert scored.per_sample == [{"accuracy": 1.0}, {"accuracy": 0.0}]


def test_whitespace_is_ignored_and_case_is_not() -> None:
    answers, references = ["  two \t words\u00a0", "Cat", "twowords"], [["two words"], ["cat"], ["two words"]]
    assert exact.score(answers, references).summary["accuracy"] == pytest.approx(1 / 3)
    without_case = exact.score(answers, references, exact.Options(lowercase=True))
    assert without_case.summary["accuracy"] == pytest.approx(2 / 3)
    assert without_case.definition["lowercase"] is True


def test_a_final_period_is_no_part_of_an_answer() -> None:
    assert exact.score(["a cup", "a cup. ."], [["a cup."], ["a cup"]]).summary == {"accuracy": 1.0}
    assert exact.score(["3.5"], [["3"]]).summary == {"accuracy": 0.0}


def test_a_part_of_a_reference_is_no_match() -> None:
    assert exact.score(["cat"], [["cats", "a cat"]]).summary == {"accuracy": 0.0}


def test_each_group_has_its_own_accuracy() -> None:
    scored = exact.score(
        ["yes", "red", "no", "x"], [["yes"], ["red"], ["yes"], ["x"]], groups=["yes/no", "color", "yes/no", ""]
    )
    summary, rows = scored.summary, scored.per_sample
    assert summary == {"accuracy": 0.75, "accuracy_yes_no": 0.5, "accuracy_color": 1.0}
    assert rows[3] == {"accuracy": 1.0}, "no group"
    for key, value in summary.items():
        having = [row[key] for row in rows if key in row]
        assert value == sum(having) / len(having), "the summary is the mean over the rows that have the key"


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("yes/no", "accuracy_yes_no"),
        (" What Color? ", "accuracy_what_color"),
        ("числа", "accuracy_числа"),
        ("?", ""),
        ("", ""),
    ],
)
def test_group_keys(group: str, key: str) -> None:
    assert group_key(group) == key


def test_lengths_must_agree_and_nothing_is_no_score() -> None:
    with pytest.raises(ValueError, match="shorter"):
        exact.score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="shorter"):
        exact.score(["a", "b"], [["a"], ["b"]], groups=["one"])
    with pytest.raises(ValueError, match="sample 1 has no references"):
        exact.score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="nothing to score"):
        exact.score([], [])
