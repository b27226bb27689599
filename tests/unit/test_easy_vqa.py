"""Task easy-VQA: its rows, cleaned answers, scores by kind of question, and damaged folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perceptune.data.tasks.easy_vqa import EasyVQA
from perceptune.errors import UserError
from perceptune.types import Sample

QUESTIONS = [
    ["what is the blue shape?", "rectangle", 1],
    ["what is the color of the rectangle?", "blue", 1],
    ["is there no circle?", "yes", 1],
    ["is there a red shape?", "no", 0],
]


@pytest.fixture
def easy(tmp_path: Path) -> Path:
    """A folder of easy-VQA's layout."""
    for split, questions in (("train", QUESTIONS), ("test", QUESTIONS[:3])):
        (tmp_path / split / "images").mkdir(parents=True)
        for number in range(2):
            (tmp_path / split / "images" / f"{number}.png").touch()
        (tmp_path / split / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    return tmp_path


def easy_task(folder: Path) -> EasyVQA:
    return EasyVQA(EasyVQA.Options(data=folder))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "yes"),
        ("\n\n  a Red circle \n\nquestion: next?", "a red circle"),
        ("3.5 m.", "3.5 m"),
        ("no . .. ", "no"),
        ("two\rthree", "two"),
        ("", ""),
        (" \n", ""),
        ("...", ""),
        ("É\u2028x", "é"),
    ],
)
def test_clean_keeps_the_first_line_and_is_idempotent(text: str, answer: str, easy: Path) -> None:
    task = easy_task(easy)
    assert task.clean(text) == answer
    assert task.clean(task.clean(text)) == answer


def test_easy_vqa_rows(easy: Path) -> None:
    task = easy_task(easy)
    rows = task.samples("train")
    assert [row.id for row in rows] == [f"train-00000{n}" for n in range(4)]
    assert [row.prompt for row in rows] == [question for question, _, _ in QUESTIONS]
    assert [row.targets for row in rows] == [(answer,) for _, answer, _ in QUESTIONS]
    assert [row.meta["answer_type"] for row in rows] == ["shape", "color", "yes/no", "yes/no"]
    assert rows[0].media == {"image": easy / "train" / "images" / "1.png"}
    assert rows == task.samples("train")
    assert [row.id for row in task.samples("test")] == [f"test-00000{n}" for n in range(3)]


def test_easy_vqa_scores(easy: Path) -> None:
    task = easy_task(easy)
    rows = task.samples("train")
    scored = task.score(["Rectangle.\nand so on", "red", "yes", "yes"], rows)
    summary, per_sample = scored.summary, scored.per_sample
    assert summary == {
        "accuracy": 0.5,
        "accuracy_open": 0.5,
        "accuracy_shape": 1.0,
        "accuracy_color": 0.0,
        "accuracy_yes_no": 0.5,
    }
    assert [row["accuracy"] for row in per_sample] == [1.0, 0.0, 1.0, 0.0]
    assert ["accuracy_open" in row for row in per_sample] == [True, True, False, False]
    assert task.metric in summary
    assert "accuracy_open" not in task.score(["yes"], rows[2:3]).summary, "no open question, no number"
    assert task.score([row.targets[0] for row in rows], rows).summary["accuracy"] == 1.0


def test_a_mistyped_split_gets_the_nearest(easy: Path) -> None:
    with pytest.raises(UserError, match=r"unknown split `tset`; did you mean `test`\?"):
        easy_task(easy).samples("tset")


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ('[["q?", "yes", 7]]', r"questions\.json, row 0: there is no images/7\.png"),
        ('[["q?", "yes", 0], ["q?", 3, 0]]', r"row 1: expected \[question, answer, image number\]"),
        ('[["q?", "yes"]]', "row 0: expected"),
        ('{"a": 1}', "expected a list"),
        ("[]", "expected a list"),
        ('[["q?"', "cannot read the questions"),
        (None, "cannot read the questions"),
    ],
)
def test_a_damaged_easy_vqa_folder(questions: str | None, message: str, easy: Path) -> None:
    file = easy / "test" / "questions.json"
    file.unlink() if questions is None else file.write_text(questions)
    with pytest.raises(UserError, match=message):
        easy_task(easy).samples("test")


def test_an_easy_vqa_folder_without_images(easy: Path) -> None:
    with pytest.raises(UserError, match=r"images is not a folder"):
        easy_task(easy / "nowhere").samples("test")


def test_the_even_part_cannot_be_guessed_from_the_wording(easy: Path) -> None:
    asked = [("is it red?", "no")] * 5 + [("is it red?", "yes")] * 2
    asked += [("is it no cup?", "yes")] * 3 + [("which?", "cup")]
    samples = [
        Sample(str(n), {}, prompt, (answer,), {"answer_type": "yes/no" if answer in ("yes", "no") else "shape"})
        for n, (prompt, answer) in enumerate(asked)
    ]
    for guess in ("yes", "no"):
        assert easy_task(easy).score([guess] * len(samples), samples).summary["accuracy_yes_no_even"] == 0.5
    right = easy_task(easy).score([answer for _, answer in asked], samples)
    assert right.summary["accuracy_yes_no_even"] == 1.0
    even = [row for row in right.per_sample if "accuracy_yes_no_even" in row]
    assert len(even) == 4, "two of each answer to the first wording; the second wording has one answer only"
