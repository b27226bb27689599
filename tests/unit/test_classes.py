"""Accuracy, macro F1 and confusions of a closed set of answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceptune.data.bootstrap import bootstrap_corpus
from perceptune.data.metrics import classes, exact
from perceptune.data.tasks.mixture import TASK as MIXTURE
from perceptune.errors import UserError
from perceptune.evaluation.confusion import confusion_tables
from perceptune.evaluation.score_files.run import score_files
from shelves import put, task

SET = ["cat", "dog", "cow"]
rows = st.lists(st.tuples(st.sampled_from([*SET, "Dog", "a bird", ""]), st.sampled_from(SET)), min_size=1, max_size=9)


def by_hand(given: list[tuple[str, str]]) -> float:
    """Macro F1 as it is defined, from the lists alone."""
    values = []
    for name in {right for _, right in given}:
        hits = sum(text == name == right for text, right in given)
        errors = sum((text == name) != (right == name) for text, right in given)
        values.append(2 * hits / (2 * hits + errors))
    return sum(values) / len(values)


@settings(max_examples=50, deadline=None)
@given(rows=rows)
def test_values_are_those_of_the_definitions(rows: list[tuple[str, str]]) -> None:
    texts, right = [text for text, _ in rows], [[answer] for _, answer in rows]
    found = classes.score(texts, right, choices=[SET] * len(rows))
    assert found.summary["macro_f1"] == pytest.approx(by_hand(rows))
    assert found.summary["accuracy"] == exact.score(texts, right).summary["accuracy"]
    table = found.tables["confusion"]
    counts = np.array(table["counts"])
    assert (table["classes"], counts.shape, counts.sum()) == (SET, (3, 4), len(rows))
    assert counts.trace() == sum(row["accuracy"] for row in found.per_sample)
    for number, name in enumerate(SET):
        assert counts[number].sum() == sum(answer == name for _, answer in rows)
        assert counts[:, number].sum() == texts.count(name)
    assert json.loads(json.dumps(table)) == table
    corpus = found.corpus["macro_f1"]
    doubled = corpus.value(2 * corpus.statistics.sum(axis=0))
    assert doubled == pytest.approx(found.summary["macro_f1"])


def test_a_resample_is_scored_as_those_samples_alone() -> None:
    texts, right = ["cat", "dog", "cat", "cow", "bird"], [["cat"], ["cat"], ["dog"], ["cow"], ["dog"]]
    whole = classes.score(texts, right, choices=[SET] * 5)
    corpus = whole.corpus["macro_f1"]
    for drawn in ([0, 0, 1, 4, 2], [3, 3, 3, 3, 3], [0, 1, 1, 0, 1]):
        again = classes.score([texts[i] for i in drawn], [right[i] for i in drawn], choices=[SET] * 5)
        assert float(corpus.value(corpus.statistics[drawn].sum(axis=0))) == pytest.approx(again.summary["macro_f1"])
    low, high = bootstrap_corpus(corpus.statistics, corpus.value)
    assert low <= whole.summary["macro_f1"] <= high


def test_a_sample_with_several_references_belongs_to_the_predicted_one() -> None:
    found = classes.score(["dog", "cow"], [["cat", "dog"], ["cat", "dog"]], choices=[SET] * 2)
    assert found.tables["confusion"]["counts"] == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert found.summary == {"accuracy": 0.5, "macro_f1": 0.5}


def test_without_choices_the_references_are_the_classes() -> None:
    found = classes.score(["Cat.", "x"], [["cat"], ["dog"]], classes.Options(lowercase=True), groups=["a", "b"])
    assert found.tables["confusion"] == {"classes": ["cat", "dog"], "counts": [[1, 0, 0], [0, 0, 1]]}
    assert found.summary == {"accuracy": 0.5, "accuracy_a": 1.0, "accuracy_b": 0.0, "macro_f1": 0.5}


def test_thousands_of_classes_have_no_table() -> None:
    names = [f"class {n}" for n in range(classes.MOST + 1)]
    found = classes.score(["class 1"], [["class 1"]], choices=[names])
    assert (found.tables, found.summary["macro_f1"]) == ({}, 1.0)


def write(folder: Path) -> Path:
    rows = [{"image": None, "prompt": "what?", "targets": answer, "answer_type": kind}
            for answer, kind in (("Cat", "x"), ("dog", "y"), ("dog", "x"))]  # fmt: skip
    return put(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_a_task_with_choices_scores_classes(tmp_path: Path) -> None:
    pets = task("jsonl", train=write(tmp_path), choices=["Cat", "dog", "cow"], lowercase=True, metric="macro_f1")
    scored = pets.score(["cat.", "Dog", "a dog"], pets.samples("train"))
    assert scored.summary == {
        "accuracy": pytest.approx(2 / 3), "accuracy_x": 0.5, "accuracy_y": 1.0, "macro_f1": pytest.approx(5 / 6),
    }  # fmt: skip
    counts = [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert scored.tables == {"confusion": {"classes": ["cat", "dog", "cow"], "counts": counts}}
    assert scored.definition["metric"] == "classes"


def test_macro_f1_needs_the_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives no metric `macro_f1`: it needs the classes, `task.choices`"):
        task("jsonl", train=write(tmp_path), metric="macro_f1").samples("train")


def test_a_mixture_keeps_the_table_of_each_part(tmp_path: Path) -> None:
    part = {"name": "jsonl", "train": str(write(tmp_path)), "choices": ["Cat", "dog"]}
    both = MIXTURE(MIXTURE.Options(parts={"a": part, "b": {"name": "jsonl", "train": part["train"]}}))
    scored = both.score(["dog"] * 6, both.samples("train"))
    assert scored.tables == {"a_confusion": {"classes": ["Cat", "dog"], "counts": [[0, 1, 0], [0, 2, 0]]}}
    assert scored.corpus["a_macro_f1"].value(scored.corpus["a_macro_f1"].statistics.sum(axis=0)) == pytest.approx(0.4)


def test_files_are_scored_by_classes(tmp_path: Path) -> None:
    right = [{"id": str(n), "targets": answer, "choices": SET} for n, answer in enumerate(["cat", "dog", "dog"])]
    given = [{"id": str(n), "prediction": answer} for n, answer in enumerate(["cat", "dog", "bird"])]
    files = [put(tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows))
             for name, rows in (("given.jsonl", given), ("right.jsonl", right))]  # fmt: skip
    found = score_files(str(files[0]), str(files[1]), ["classes"]).result
    assert found["macro_f1"] == pytest.approx(5 / 6)
    assert found["confusion"]["counts"] == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert found["macro_f1_interval"][0] <= found["macro_f1"] <= found["macro_f1_interval"][1]


def test_the_most_frequent_confusions_of_many_classes() -> None:
    names = [f"class {n}" for n in range(13)]
    counts = [[0] * 14 for _ in names]
    for n in range(13):
        counts[n][n] = 50
        counts[n][(n + 1) % 13] = n
    counts[4][13] = 90
    [table] = confusion_tables({"confusion": {"classes": names, "counts": counts}, "accuracy": 0.5})
    assert table.rows[:2] == [["class 4", "(other)", "90"], ["class 12", "class 0", "12"]]
    assert (len(table.rows), table.caption) == (10, "the most frequent of 13 confusions between 13 classes")
    right = [[int(i == j) for j in range(14)] for i in range(13)]
    assert not [*confusion_tables({"confusion": {"classes": names, "counts": right}})]


def test_a_table_of_another_form_is_not_shown() -> None:
    good = {"classes": ["a", "b"], "counts": [[1, 0, 0], [0, 2, 1]]}
    [table] = confusion_tables({"part_confusion": good})
    assert (table.caption[:6], table.rows) == ("part: ", [["a", "1", "0", "0"], ["b", "0", "2", "1"]])
    bad = (None, [], {}, {**good, "counts": [[1, 0], [0, 2]]}, {**good, "classes": ["a"]}, {**good, "counts": [1, 2]})
    assert not any([*confusion_tables({"confusion": found})] for found in bad)
