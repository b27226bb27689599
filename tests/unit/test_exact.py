"""Exact match: any reference counts, whitespace does not, groups are averaged apart."""

from __future__ import annotations

import pytest

from perceptune.metrics import exact


def test_any_reference_counts() -> None:
    summary, rows = exact.score(["cat", "dog"], [["a cat", "cat"], ["cat"]])
    assert summary == {"accuracy": 0.5}
    assert rows == [{"accuracy": 1.0}, {"accuracy": 0.0}]


def test_whitespace_is_ignored_and_case_is_not() -> None:
    summary, _ = exact.score(["  two \t words\u00a0", "Cat", "twowords"], [["two words"], ["cat"], ["two words"]])
    assert summary["accuracy"] == pytest.approx(1 / 3)


def test_a_part_of_a_reference_is_no_match() -> None:
    assert exact.score(["cat"], [["cats", "a cat"]])[0] == {"accuracy": 0.0}


def test_each_group_has_its_own_accuracy() -> None:
    summary, rows = exact.score(
        ["yes", "red", "no", "x"], [["yes"], ["red"], ["yes"], ["x"]], ["yes/no", "color", "yes/no", ""]
    )
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
    assert exact.group_key(group) == key


def test_lengths_must_agree_and_nothing_is_no_score() -> None:
    with pytest.raises(ValueError, match="shorter"):
        exact.score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="shorter"):
        exact.score(["a", "b"], [["a"], ["b"]], ["one"])
    with pytest.raises(ValueError, match="nothing to score"):
        exact.score([], [])
