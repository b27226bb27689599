"""What the numbers of a report suggest, and the examples it shows."""

from __future__ import annotations

from typing import Any

import pytest

from perceptune.errors import UserError
from perceptune.evaluation.first_look import _constant, _examples, report_lines, suggestions

GOOD = {
    "trained_on": False, "chosen_on": False, "gap": 0.3, "gap_interval": [0.2, 0.4], "interval": [0.6, 0.7],
    "media": 500, "always": {"answer": "red", "score": 0.2}, "loss": (1.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gap": 0.01, "gap_interval": [-0.02, 0.04]}, "does not use the media"),
        ({"loss": (1.0, 0.9)}, "train more steps"),
        ({"always": {"answer": "red", "score": 0.65}}, "Answering always `red` scores 0.650"),
        ({"media": 12}, "12 media make a wide interval (0.600 to 0.700)"),
        ({"trained_on": True}, "were trained on"),
        ({"chosen_on": True}, "These samples chose the checkpoint"),
        ({"loss": None, "always": None, "gap": None, "gap_interval": None}, "No rule applies"),
    ],
)
def test_one_number_is_one_suggestion(change: dict[str, Any], words: str) -> None:
    [said] = suggestions({**GOOD, **change})
    assert words in said


def test_nothing_of_the_data_steers_the_terminal() -> None:
    row = {"medium": "\x1b[1m.png", "prompt": "what?\n", "answer": "\x1b[2J", "targets": ["\x07"]}
    found = {**GOOD, "metric": "accuracy", "value": 0.6, "samples": 9, "split": "test", "shuffled": None,
             "no_media": None, "always": {"answer": "\x1b]0;title\x07", "score": 0.7}, "wrong": [row],
             "next": ["\x1b"]}  # fmt: skip
    assert all(line.isprintable() for line in report_lines(found))


def rows(metric: str, *values: float) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{n}",
            "media": {"image": f"a/{n}.png"},
            "prompt": "?",
            "answer": "x",
            "targets": ["y"],
            "scores": {metric: value},
        }
        for n, value in enumerate(values)
    ]


def test_right_and_wrong_examples_are_the_same_each_time() -> None:
    given = rows("accuracy", *[1.0] * 30, *[0.0] * 3)
    found = _examples(given, "accuracy")
    assert {name: len(part) for name, part in found.items()} == {"right": 5, "wrong": 3}
    assert {row["medium"] for row in found["wrong"]} == {"30.png", "31.png", "32.png"}
    assert found == _examples(given, "accuracy")
    assert _examples(given, "macro_f1") == found, "a value of the whole has no samples"


def test_captions_show_the_best_and_the_worst() -> None:
    found = _examples(rows("CIDEr", 0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 0.8), "CIDEr")
    assert [row["medium"] for row in found["best"]] == ["1.png", "6.png", "4.png", "2.png", "3.png"]
    assert [row["medium"] for row in found["worst"]] == ["0.png", "5.png", "3.png", "2.png", "4.png"]


class Elsewhere:
    """A task whose training data is on another machine."""

    splits = ("train",)

    def samples(self, split: str) -> list[Any]:
        raise UserError(f"cannot read {split}.jsonl")


def test_a_report_needs_no_training_data(capsys: pytest.CaptureFixture[str]) -> None:
    task: Any = Elsewhere()
    assert _constant(task, task, "accuracy", {}) is None
    assert "most frequent training answer is left out: cannot read train.jsonl" in capsys.readouterr().err
