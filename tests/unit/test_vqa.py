"""VQA accuracy: equal to the official evaluation code, dialect by dialect, rule by rule."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from perceptune.data.metrics import vqa

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/vqa.json").read_text(encoding="utf-8"))
COLUMNS = {"official": "official", "always": "always_normalise", "evalai": "evalai"}


def accuracy(prediction: str, answers: list[str], dialect: str = "official") -> float:
    return vqa.score([prediction], [answers], vqa.Options.model_validate({"dialect": dialect})).summary["accuracy"]


@pytest.mark.parametrize("dialect", COLUMNS)
@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["note"])
def test_golden_values(row: dict[str, object], dialect: str) -> None:
    assert 100 * accuracy(str(row["prediction"]), row["references"], dialect) == pytest.approx(
        row[COLUMNS[dialect]], abs=1e-4
    )


@pytest.mark.parametrize(("equal", "worth"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators_give_0_3_for_each_of_three(equal: int, worth: float) -> None:
    answers = ["cat"] * equal + [f"other {n}" for n in range(10 - equal)]
    assert accuracy("cat", answers) == pytest.approx(worth)


def test_only_the_official_dialect_looks_at_whether_annotators_agree() -> None:
    """Nine `yes` and one `no`: answers are normalised and a capital does not matter. Ten `yes`: it does."""
    assert accuracy("Yes", ["yes"] * 9 + ["no"]) == 1.0
    assert accuracy("Yes", ["yes"] * 10) == 0.0
    assert accuracy("Yes", ["yes"] * 10, "always") == 1.0
    lower = vqa.score(["Yes"], [["yes"] * 10], vqa.Options(lowercase=True))
    assert lower.summary["accuracy"] == 1.0
    assert lower.definition == {"metric": "vqa", "dialect": "official", "lowercase": True}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A Dog, the cat!", "dog cat"),
        ("red/white", "red white"),
        ("red/ white", "red white"),
        ("x/y, a/b", "x y b"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("1.5 U.S.", "1.5 us"),
        ("dont Itd've 'twas twas", "don't it'd've 'twas 'twas"),
        ("somebody'd couldnt've", "somebodyd couldn't've"),
        ("None of ten", "0 of 10"),
        (". " * 40, " ".join(["."] * 8)),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert vqa.normalise(text) == normal


def test_evalai_makes_the_possessive_a_word() -> None:
    answers = ["man 's hat"] * 4 + ["hat"] * 6
    assert accuracy("man's hat", answers, "evalai") == 1.0
    assert accuracy("man's hat", answers, "always") == 0.0


def marks_taken(text: str) -> str:
    """The release's way with punctuation, by the letter."""
    taken = text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        beside_a_space = mark + " " in text or " " + mark in text
        taken = taken.replace(mark, "" if beside_a_space or re.search(r"\d,\d", text) else " ")
    return re.sub(r"\.(?!\d)", "", taken)


def epalm_accuracy(prediction: str, answers: list[str]) -> float:
    """The release's rule: every prediction is made plain, of the answers the punctuation where they differ."""
    numbers = dict(zip(("none", "one", "two", "three"), "0123", strict=True))
    words = [numbers.get(word, word) for word in marks_taken(prediction.strip()).lower().split()]
    given = " ".join({"dont": "don't"}.get(word, word) for word in words if word not in ("a", "an", "the"))
    if len(set(answers)) > 1:
        answers = [marks_taken(answer) for answer in answers]
    others = [[*answers[:i], *answers[i + 1 :]] for i in range(len(answers))]
    return sum(min(1.0, sum(other == given for other in left) / 3) for left in others) / len(answers)


def test_the_rule_of_the_epalm_release_is_a_dialect() -> None:
    chance = random.Random(5)
    words = ["dog", "Dog", "a", "the", "one", "1", "dont", "don't", "red/white", "red white", "t-shirt", "1,000", "no."]

    def said(most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(1, most)))

    unlike = 0
    for _ in range(400):
        pool = [said(2) for _ in range(chance.choice((1, 2, 3)))]
        answers = [chance.choice(pool) for _ in range(10)]
        prediction = chance.choice((*pool, said(2)))
        found = accuracy(prediction, answers, "epalm")
        assert found == pytest.approx(epalm_accuracy(prediction, answers)), (prediction, answers)
        unlike += found != accuracy(prediction, answers)
    assert unlike > 20
    assert accuracy("Yes", ["yes"] * 10, "epalm") == 1.0
    assert accuracy("a dog", ["a dog"] * 10, "epalm") == 0.0, "what was made plain meets what was not"


def test_each_group_has_its_own_accuracy() -> None:
    scored = vqa.score(["a cat", "2"], [["cat", "cat", "cat", "cat", "dog"], ["3"] * 10], groups=["other", "number"])
    assert scored.summary == {"accuracy": 0.5, "accuracy_other": 1.0, "accuracy_number": 0.0}
