"""Answers in a report: wrong ones by kind, types of questions and the same questions of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perceptune.tools.report.answers import grids, together
from perceptune.tools.report.blocks import Grid, Table, Words, grouped, without_empty
from perceptune.tools.report.gather import ReportedRun
from perceptune.tools.report.html import html
from perceptune.tools.report.markdown import markdown
from perceptune.tools.report.mistakes import by_kind, kinds_table, truth_of
from perceptune.tools.report.questions import questions
from perceptune.tools.report.sections import make_report


def row(name: str, answer: str, *targets: str, score: float = 0.0, **meta: Any) -> dict[str, Any]:
    return {
        "id": name, "prompt": f"question {name}?", "answer": answer, "targets": list(targets), "media": {"image": name},
        "scores": {"accuracy": score}, "meta": meta,
    }  # fmt: skip


def run_of(name: str, rows: list[dict[str, Any]], blind: list[dict[str, Any]] | None = None) -> ReportedRun:
    controls = {} if blind is None else {"shuffled": {one["id"]: one for one in blind}}
    return ReportedRun(name, Path("/nowhere"), {}, {}, [], None, rows, controls, [])


KINDS = {
    "no answer": ("", "red"),
    "yes for no": ("Yes.", "no"),
    "no for yes": ("no", "yes"),
    "another number": ("3", "two"),
    "an answer to another kind of question": ("yes", "red"),
    "partly right": ("a red circle", "red square"),
    "the answer of other samples": ("blue", "red"),
    "the answer of no sample": ("zebra", "red"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_answers_have_their_kind(kind: str) -> None:
    answer, truth = KINDS[kind]
    wrong = row("1", answer, truth)
    assert list(by_kind([wrong], [wrong, row("2", "x", "blue"), row("3", "x", "yes")])) == [kind]


def test_the_truth_is_what_most_have_said() -> None:
    assert truth_of(row("1", "", "cat", "dog", "dog")) == "dog"
    assert truth_of(row("1", "", "cat", "dog")) == "cat"
    assert truth_of(row("1", "")) == ""


def test_kinds_are_counted_with_their_confusions_and_controls() -> None:
    wrong = [row("1", "blue", "red"), row("2", "blue", "red"), row("3", "red", "blue"), row("4", "yes", "no")]
    blind = {"1": row("1", "blue", "red"), "2": row("2", "green", "red"), "4": row("4", "Yes", "no")}
    table = kinds_table("a run", by_kind(wrong, wrong), blind)
    assert table.rows == [
        ["the answer of other samples", "3", "75.0 %", "“blue”, “red” (2)", "1 of 2"],
        ["yes for no", "1", "25.0 %", "“yes”, “no” (1)", "1 of 1"],
    ]
    assert all(len(line) == len(table.heading) for line in table.rows)
    assert len(kinds_table("a run", by_kind(wrong, wrong), {}).heading) == 4


def test_each_kind_of_wrong_answer_has_pictures() -> None:
    rows = [row(str(i), "yes" if i % 2 else "", "no") for i in range(20)] + [row("r", "no", "no", score=1.0)]
    right, table, *wrong = grids(run_of("x", rows), 4, media=False)
    assert isinstance(right, Grid)
    assert isinstance(table, Table)
    assert [one.caption for one in wrong if isinstance(one, Grid)] == [
        "Wrong (no answer): 2 of 10", "Wrong (yes for no): 2 of 10",
    ]  # fmt: skip
    assert right.caption == "Right: 1 of 1"
    none, said = grids(run_of("x", rows[-1:]), 4, media=False)
    assert said == Words("Wrong: none.")
    assert isinstance(none, Grid)


def test_a_metric_without_right_and_wrong_says_its_value() -> None:
    rows = [row(str(i), "a cat", "a dog") | {"scores": {"cider": i / 2}} for i in range(6)]
    best, worst = grids(run_of("x", rows), 4, media=False)
    assert isinstance(best, Grid)
    assert isinstance(worst, Grid)
    assert (best.caption, worst.caption) == ("The best third by cider: 2 of 2", "The worst third by cider: 2 of 2")
    assert [(one.answers[0].right, one.answers[0].score) for one in best.shots] == [
        (None, "cider 2.500"), (None, "cider 2.000"),
    ]  # fmt: skip


def test_several_runs_are_asked_the_same() -> None:
    a = run_of("a", [row(str(i), "x", "x", score=1.0) for i in range(8)])
    b = run_of("b", [row(str(i), "x" if i < 5 else "y", "x", score=float(i < 5)) for i in range(8)])
    [grid] = together([a, b], 2, media=False)
    assert isinstance(grid, Grid)
    assert "2 of 3 that some answer right and some wrong (8 asked)" in grid.caption
    assert [[(one.by, one.answer, one.right) for one in shot.answers] for shot in grid.shots] == [
        [("a", "x", True), ("b", "y", False)]
    ] * 2
    assert together([a, run_of("c", [row("other", "x", "x")])], 2, media=False) == []
    page = make_report([a, b], [], samples=2, media=False)
    assert html(page).count("<details>") == 2
    assert "| ✓ right: x | ✗ wrong: y | x |" in markdown(page)


def test_types_of_several_runs_stand_in_one_table() -> None:
    rows = [row(str(i), "x", "x", score=float(i % 2), answer_type="odd" if i % 2 else "even") for i in range(6)]
    one, two = run_of("one", rows), run_of("two", rows[:4])
    [table] = questions([one, two])
    assert isinstance(table, Table)
    assert list(table.heading) == ["run", "even (3)", "odd (3)"]
    assert [list(line) for line in table.rows] == [
        [name, "0.000 (0.000 to 0.000)", "1.000 (1.000 to 1.000)"] for name in ("one", "two")
    ]
    for number, given in enumerate(rows):
        given["meta"] = {"answer_type": f"kind {number % 3}"}
    [turned] = questions([one, two])
    assert isinstance(turned, Table)
    assert list(turned.heading) == ["answer type", "one", "two"]
    assert [line[0] for line in turned.rows] == ["kind 0 (2)", "kind 1 (2)", "kind 2 (2)"]


def test_tables_leave_out_what_says_nothing() -> None:
    table = Table("x", ("run", "a", "b"), [["one", "", "1"], ["two", "", ""]])
    assert without_empty(table) == Table("x", ["run", "b"], [["one", "1"], ["two", ""]])
    same = Table("x", ("run", "a"), [["one", "1"], ["two", "1"], ["three", "2"]])
    assert grouped(same).rows == [["one, two", "1"], ["three", "2"]]
    assert grouped(Table("x", ("run", "a"), same.rows[:2])).rows == [["all", "1"]]
    assert grouped(Table("x", ("run", "a"), same.rows[:1])).rows == [["one", "1"]]
