"""Rows to predict: which are ranked, and what they may have beside the run's own data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import forms
from perceptune.config.recipe import load_recipe
from perceptune.errors import UserError
from perceptune.evaluation.prediction_rows import answered, recognized_rows, require_choices, run_settings
from perceptune.types import Sample

pytestmark = pytest.mark.usefixtures("own_cache")


def stub(task: dict[str, Any] | None = None) -> Any:
    """A model that ranks the last choice first."""
    recipe = load_recipe({"task": {"name": "jsonl", "train": "x", **(task or {})}, "eval": {"rank": "choices"}})
    return SimpleNamespace(
        recipe=recipe,
        answer=lambda samples, **_: [f"free {sample.id}" for sample in samples],
        rank=lambda samples, choices, **_: [list(range(len(own))) for own in choices],
    )


def sample(name: str, **meta: Any) -> Sample:
    return Sample(name, {}, "which?", meta=meta)


def test_a_row_is_ranked_whatever_its_neighbours_have() -> None:
    rows = [sample("a", choices=["x", "y"]), sample("b"), sample("c", choices=None), sample("d", choices=["z", "w"])]
    assert answered(stub(), rows) == ["y", "free b", "free c", "w"]
    assert answered(stub({"choices": ["cat", "dog"]}), rows) == ["y", "dog", "dog", "w"]
    assert answered(stub(), []) == []


def test_a_row_with_unusable_choices_is_an_error_of_its_own() -> None:
    with pytest.raises(UserError, match="sample `a`: `choices` must be at least two"):
        require_choices(stub(), sample("a", choices=["x"]))
    require_choices(stub(), sample("a", choices=None))


def test_an_answer_outside_the_choices_is_no_reason_to_refuse_a_row(tmp_path: Path) -> None:
    case = forms.FORMS["csv_of_labels"](tmp_path / "data")
    recipe = stub({"choices": ["cat", "dog"], "metric": "macro_f1", "prompt": "which?"}).recipe
    rows = [row for _, row in recognized_rows(case.place, None, recipe)]
    assert len(rows) == forms.COUNT
    assert all(isinstance(row, Sample) and "choices" not in row.meta for row in rows)


@pytest.mark.parametrize(("turns", "kept"), [("all", {"turns": "all"}), ("last", {}), (None, {})])
def test_other_conversations_are_read_whole_if_the_runs_own_were(turns: str | None, kept: dict[str, str]) -> None:
    task = {"name": "messages", "train": "talks.jsonl", **({} if turns is None else {"turns": turns})}
    found = run_settings(load_recipe({"task": task, "text": {"template": "chat"}}))
    assert {key: value for key, value in found.items() if key == "turns"} == kept
