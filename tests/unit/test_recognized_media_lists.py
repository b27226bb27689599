"""What data with several media a sample, or with whole conversations, is taken for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forms
from forms import color, lines, picture, pictures, table, write
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.recognition.task_keys import recognize_task
from perceptune.training.default_recipe import default_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("kind", ["lines", "names", "table", "parquet", "parquet of names", "conversations"])
def test_lists_of_media_are_recognised(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    names = pictures(folder)
    lists = [names[number : number + 1 + number % 3] for number in range(len(names) - 2)]
    key = {"names": "shots", "parquet of names": "images"}.get(kind, "image")
    rows = [{key: some, "question": f"redder {n}?", "answer": color(n)} for n, some in enumerate(lists)]
    if kind == "conversations":
        talks = [
            [{"from": "human", "value": f"Which {n}?"}, {"from": "gpt", "value": color(n)}] for n in range(len(lists))
        ]
        both = zip(lists, talks, strict=True)
        place = write(
            folder / "rows.json", json.dumps([{"images": some, "conversations": talk} for some, talk in both])
        )
    elif kind == "table":
        cells = [[key, "question", "answer"], *([str(row[key]), row["question"], row["answer"]] for row in rows)]
        place = write(folder / "rows.csv", table(cells))
    elif kind.startswith("parquet"):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pytest.importorskip("datasets")
        if kind == "parquet":
            rows = [{**row, key: [{"bytes": picture(n), "path": None}] * len(row[key])} for n, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(rows), place := folder / "rows.parquet")
    else:
        place = write(folder / "rows.jsonl", lines(rows))
    found = recognize_task(str(place))
    assert found.doubt is None
    assert found.found.most == {"image": 3}
    used = {name for some in lists for name in some}
    assert f"{len(lists)} samples with {len(used)} images" in found.line or kind == "parquet"
    assert "up to 3 images a sample (encoders.image.max_media)" in found.line
    samples = task_of(NamedPart(**found.task)).samples("train")
    assert [len(sample.list_media("image")) for sample in samples] == [1 + n % 3 for n in range(len(lists))]
    assert default_recipe(found, words=["train.hold_out=null"])["encoders"]["image"]["max_media"] == 3


def test_rows_with_one_medium_set_no_maximum(tmp_path: Path) -> None:
    found = recognize_task(forms.FORMS["json_lines_of_captions"](tmp_path).place)
    assert "max_media" not in found.line
    assert "max_media" not in default_recipe(found, words=["train.hold_out=null"])["encoders"]["image"]


def test_whole_conversations_use_the_chat_template(tmp_path: Path) -> None:
    [name, *_] = pictures(tmp_path)
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcb", strict=True)]
    place = write(tmp_path / "rows.jsonl", lines([{"image": name, "messages": turns}] * 9))
    found = recognize_task(str(place), words=["task.turns=all", "task.number_rows=true"])
    assert (found.doubt, found.learned.kind) == (None, "questions")
    assert "earlier turns in the LM's chat template (text.template)" in found.line
    assert default_recipe(found, words=["train.hold_out=null"])["text"] == {"template": "chat"}
    assert recognize_task(str(place), words=["task.number_rows=true"]).learned.template is None
