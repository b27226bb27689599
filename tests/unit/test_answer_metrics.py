"""What every metric of answers has in common, and the rules of each."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceptune.data.metrics import a_okvqa, choice, exact, f1, gqa, vqa
from perceptune.data.metrics.base import group_key, with_groups

METRICS = {"exact": exact, "f1": f1, "gqa": gqa, "choice": choice, "a-okvqa": a_okvqa, "vqa": vqa}
word = st.sampled_from(
    ["yes", "No", "a dog", "the", "2", "two", "t-shirt", "", " ", "café", "İ", "a\nb", "!?", "1,000."]
)
rows = st.lists(st.tuples(word, st.lists(word, min_size=1, max_size=10)), min_size=1, max_size=6)


def key_of(metric: ModuleType) -> str:
    return "f1" if metric is f1 else "accuracy"


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=30, deadline=None)
@given(rows=rows, data=st.data())
def test_values_are_shares_and_do_not_depend_on_order(
    name: str, rows: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    metric = METRICS[name]
    scored = metric.score([text for text, _ in rows], [answers for _, answers in rows])
    key = key_of(metric)
    values = [row[key] for row in scored.per_sample]
    assert all(0 <= value <= 1 for value in values)
    assert scored.summary[key] == pytest.approx(sum(values) / len(values))
    order = data.draw(st.permutations(range(len(rows))))
    mixed = metric.score([rows[i][0] for i in order], [data.draw(st.permutations(rows[i][1])) for i in order])
    assert [row[key] for row in mixed.per_sample] == [values[i] for i in order]
    assert mixed.summary[key] == pytest.approx(scored.summary[key])


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=30, deadline=None)
@given(answer=word)
def test_what_all_references_say_is_right(name: str, answer: str) -> None:
    metric = METRICS[name]
    assert metric.score([answer], [[answer] * 4]).summary[key_of(metric)] == 1.0


@pytest.mark.parametrize("name", METRICS)
def test_an_empty_prediction_is_wrong_and_no_references_are_refused(name: str) -> None:
    metric = METRICS[name]
    assert metric.score([""], [["dog"] * 5]).summary[key_of(metric)] == 0.0
    with pytest.raises(ValueError, match="nothing to score"):
        metric.score([], [])
    with pytest.raises(ValueError, match="sample 1 has no references"):
        metric.score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="shorter"):
        metric.score(["a", "b"], [["a"]])


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [
        ("The red  dog!", ["a red dog"], 1.0),
        ("red dog", ["red cat", "big red dog house"], 2 / 3),
        ("dog dog", ["dog"], 2 / 3),
        ("the", ["a"], 1.0),
        ("the", ["dog"], 0.0),
    ],
)
def test_f1_counts_shared_words_and_takes_the_best_reference(
    prediction: str, references: list[str], value: float
) -> None:
    assert f1.score([prediction], [references]).summary["f1"] == pytest.approx(value)


def test_gqa_compares_as_written_unless_told_otherwise() -> None:
    texts, right = ["Yes.", "yes"], [["yes"], ["yes"]]
    assert gqa.score(texts, right).summary["accuracy"] == 0.5
    assert gqa.score(texts, right, gqa.Options(dialect="lmms-eval")).summary["accuracy"] == 1.0
    assert gqa.score(["YES"], [["yes"]], gqa.Options(lowercase=True)).summary["accuracy"] == 1.0
    plain = gqa.score(["The two dogs.", "t-shirt"], [["2 dogs"], ["tshirt"]], gqa.Options(dialect="epalm"))
    assert plain.summary["accuracy"] == 0.5, "a mark between letters becomes a space"


def test_gqa_consistency_is_the_accuracy_on_what_follows_from_right_answers() -> None:
    right = {"q": 1.0, "w": 0.0, "a": 1.0, "b": 0.0}
    found = gqa.consistency(right, {"q": ["q", "a", "b"], "w": ["a"], "a": ["a"], "b": []})
    assert found == {"q": 0.5}, "not for wrong answers, not for those that entail nothing else"
    with pytest.raises(KeyError):
        gqa.consistency({"q": 1.0}, {"q": ["elsewhere"]})


def test_a_okvqa_normalises_nothing() -> None:
    answers = ["dog", "dog", "Dog", "a dog"]
    assert a_okvqa.score(["dog", "Dog", "cat"], [answers] * 3).summary["accuracy"] == pytest.approx((2 / 3 + 1 / 3) / 3)
    assert a_okvqa.score(["Dog"], [answers], a_okvqa.Options(lowercase=True)).summary["accuracy"] == pytest.approx(
        2 / 3
    )


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        *[(text, True) for text in ("blue", " Blue.", "B", "b", "(b)", "B.", "b)", "B: blue", "(B) blue")],
        *[(text, False) for text in ("red", "A", "(a)", "D", "B: red", "blue sky", "", "bl")],
    ],
)
def test_a_choice_is_named_by_its_text_or_its_letter(prediction: str, right: bool) -> None:
    scored = choice.score([prediction], [["blue"]], choices=[["red", "blue", "green"]])
    assert scored.summary["accuracy"] == float(right)
    named = right or prediction in ("red", "A", "(a)")
    assert scored.summary["no_choice"] == float(not named)


def test_a_choice_that_is_a_letter_is_meant_by_its_text() -> None:
    assert choice.score(["B"], [["B"]], choices=[["B", "A"]]).summary["accuracy"] == 1.0
    assert "no_choice" not in choice.score(["B"], [["B"]]).summary


def test_several_groups_of_one_sample() -> None:
    scored = with_groups(exact.score(["a", "b"], [["a"], ["a"]]), [("x", "question y"), ""])
    assert scored.summary == {"accuracy": 0.5, "accuracy_x": 1.0, "accuracy_question_y": 1.0}
    assert group_key("yes/no", "f1") == "f1_yes_no"
