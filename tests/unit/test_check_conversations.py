"""Checking samples with several media and conversations, and what else goes through all media of a sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import support
from leaves.talks import talk
from perceptune.config.recipe import load_recipe
from perceptune.data.conversations import answers_of
from perceptune.serving.examples import _example
from perceptune.serving.limits import Limits
from perceptune.tools.datasets.format_report import format_report
from perceptune.tools.datasets.page import page
from perceptune.tools.datasets.validate import Checked, CheckOptions, validate_dataset
from perceptune.tools.feature_cache import build_features

pytestmark = pytest.mark.usefixtures("own_cache")

ROWS = [
    {"id": "one", "turns": [["color?", ["train0.png"], "red"]]},
    {"id": "pair", "turns": [["which colors?", ["train0.png", "train1.png"], "red green"]]},
    {"id": "talk", "turns": [["color?", ["train1.png"], "green"], ["and this one?", ["train2.png"], "blue"]]},
]


@pytest.fixture
def talks(tmp_path: Path, dwarfs: Path) -> Path:
    support.save_data(tmp_path / "data", rows=3)
    (tmp_path / "data/talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def recipe(talks: Path, dwarfs: Path, **changes: Any) -> dict[str, Any]:
    file = str(talks / "data/talks.jsonl")
    return support.recipe(
        dwarfs / "lm", dwarfs / "encoder", task={"name": "leaves.talks", "train": file, "validation": file}, **changes
    )


def check(talks: Path, dwarfs: Path, **changes: Any) -> Checked:
    (talks / "recipe.yaml").write_text(json.dumps(recipe(talks, dwarfs, **changes)))
    return validate_dataset(str(talks / "recipe.yaml"), split="train", options=CheckOptions(samples=3))


def test_what_a_recipe_does_not_take_is_one_problem_of_its_row(talks: Path, dwarfs: Path) -> None:
    problems = check(talks, dwarfs).report["problems"]
    assert {kind: found["count"] for kind, found in problems.items()} == {"too-many-media": 2, "needs-chat": 1}
    assert (
        "row 2: 2 media of modality image, but `encoders.image.max_media` is 1"
        in problems["too-many-media"]["first"][0]
    )
    assert "row 3: it has earlier turns, which need `text.template: chat`" in problems["needs-chat"]["first"][0]
    enough = {"image": {"id": str(dwarfs / "encoder"), "max_media": 2}}
    assert list(check(talks, dwarfs, encoders=enough).report["problems"]) == ["needs-chat"]


def test_every_answer_and_medium_is_counted(talks: Path, dwarfs: Path) -> None:
    (talks / "data/train1.png").write_bytes(b"no image")
    checked = check(talks, dwarfs)
    found = checked.report["splits"]["train"]
    assert (found["rows"], found["targets"], found["answers"]["distinct"]) == (3, 4, 4)
    assert found["lengths"]["prompt words"] == {"least": 1, "mean": 2.25, "median": 1, "p99": 5, "greatest": 5}
    assert (found["media"]["image"]["rows"], found["media"]["image"]["distinct"]) == (3, 3)
    [broken] = checked.report["problems"]["broken-medium"]["first"]
    assert "row 2: `image` 2: " in broken
    assert "train1.png" in broken
    lines = "\n".join(format_report(checked, 3))
    assert "'<image>color?' / 'green' / '<image>and this one?' -> 'blue'" in lines
    html = page(checked)
    assert html.count('<img alt="image"') == 3, "the images that can be read, each as often as it is shown"
    assert "assistant: green" in html


def test_features_of_all_media_are_built(talks: Path, dwarfs: Path) -> None:
    cached = {"features": "disk", "dir": str(talks / "cache")}
    built = build_features(load_recipe(recipe(talks, dwarfs, cache=cached)), ["train"])
    assert (built["media"], built["computed"], built["broken"]) == (3, 3, {})


def test_examples_of_the_page_hold_all_media_and_no_question_that_follows_another(talks: Path) -> None:
    one, pair, first, last = (part for row in ROWS for part in answers_of(talk(row, talks / "data")))
    urls = [_example(sample, Limits()) for sample in (one, pair, first)]
    assert [example and {kind: type(url) for kind, url in example.media.items()} for example in urls] == [
        {"image": str}, {"image": list}, {"image": str}
    ]  # fmt: skip
    assert urls[1] is not None
    assert len(set(urls[1].media["image"])) == 2
    assert _example(last, Limits()) is None
    (talks / "data/train1.png").unlink()
    assert _example(pair, Limits()) is None, "one of its images cannot be read"
