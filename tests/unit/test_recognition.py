"""What a path is taken for: the line about it, and one error for what cannot be settled."""

from __future__ import annotations

from pathlib import Path

import pytest

import forms
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.recognition.task_keys import recognize_task

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", forms.FORMS)
def test_recognised_data_is_read_by_its_reader(name: str, tmp_path: Path) -> None:
    case = forms.FORMS[name](tmp_path / "data")
    found = recognize_task(case.place, words=[word for word in case.words if word.startswith("task.")])
    assert found.doubt is None
    task = task_of(NamedPart(**found.task))
    assert len(task.samples(task.splits[0])) <= found.found.samples
