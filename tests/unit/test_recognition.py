"""What a path is taken for: the line about it, and one error for what cannot be settled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forms
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.recognition.task_keys import recognize_task
from perceptune.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", forms.FORMS)
def test_recognised_data_is_read_by_its_reader(name: str, tmp_path: Path) -> None:
    case = forms.FORMS[name](tmp_path / "data")
    found = recognize_task(case.place, words=[word for word in case.words if word.startswith("task.")])
    assert found.doubt is None
    task = task_of(NamedPart(**found.task))
    assert len(task.samples(task.splits[0])) <= found.found.samples


def test_validation_data_of_a_published_set_is_joined(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    case = forms.FORMS["coco_captions"](folder)
    names = [f"{number:012d}.jpg" for number in range(forms.COUNT)]
    other = forms.write(folder / "annotations/captions_val2017.json", json.dumps(forms.coco(names)))
    task = task_of(NamedPart(**recognize_task(case.place, validation=str(other)).task))
    assert task.splits == ("train", "validation")
    media = [next(iter(task.samples(split)[0].media.values())) for split in task.splits]
    assert [Path(str(medium)).parent.name for medium in media] == ["train2017", "val2017"]
    rows = forms.FORMS["json_lines_of_captions"](tmp_path / "rows")
    with pytest.raises(UserError, match=r"--validation .*: JSON lines \(jsonl\), but --data is COCO captions"):
        recognize_task(case.place, validation=rows.place)
