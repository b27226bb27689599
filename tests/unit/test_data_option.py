"""`--data` is the data of every reader, in train and in eval; whether a run has learned what it is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import forms
from perceptune.cli.commands.eval import named_task
from perceptune.cli.commands.train import training_recipe
from perceptune.cli.main import parser
from perceptune.cli.parsing import place_overrides
from perceptune.config.hold_out import HELD_OUT
from perceptune.config.recipe import absolute_files, load_recipe
from perceptune.config.registry import leaves
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import data_keys, make_task, task_of
from perceptune.errors import UserError
from perceptune.evaluation.evaluate import EvaluatedSet, is_trained_on

WHERE = {"jsonl": "train", "webdataset": "train", "vqa-v2": "dir", "flickr8k": "dir", "hf-dataset": "path",
         "easy-vqa": "data"}  # fmt: skip


def train_task(*words: str) -> dict[str, Any]:
    """The task that a command trains on: with a recipe, as without one the data is read."""
    options, rest = parser().parse_known_args(["train", *words])
    place_overrides(options, rest)
    source, overrides = training_recipe(options)
    task = load_recipe(source, overrides).task
    assert task is not None
    return absolute_files({"name": task.name, **task.options()})


@pytest.mark.parametrize("reader", [name for name in leaves("tasks") if name != "mixture"])
def test_data_means_the_same_in_train_and_eval(reader: str, tmp_path: Path) -> None:
    place = str(tmp_path / "place")
    Path(place).touch()
    evaluated = named_task(parser().parse_args(["eval", "run", "--task", reader, "--data", place]))
    trained = train_task("small", "--task", reader, "--data", place)
    assert evaluated == {key: trained[key] for key in evaluated}
    assert evaluated[WHERE.get(reader, leaves("tasks")[reader].module.TASK.data_option)] == place


def test_a_recipes_own_reader_takes_the_data(tmp_path: Path) -> None:
    assert train_task("paper/vqa-v2", "--data", str(tmp_path))["dir"] == str(tmp_path)
    rows = tmp_path / "mine.csv"
    rows.write_text("image,question,answer\na.png,what?,a\n")
    (tmp_path / "a.png").touch()
    assert train_task("small", "--data", str(rows))["name"] == "csv"
    assert train_task("demo", "--data", str(tmp_path))["data"] == str(tmp_path)
    given = train_task("small", "--task", "csv", "--data", "a.csv", "--validation", "b.csv")
    assert (given["train"], given["validation"]) == (str(Path("a.csv").absolute()), str(Path("b.csv").absolute()))
    with pytest.raises(UserError, match=r"`vqa-v2` has its own splits.*--validation"):
        train_task("small", "--task", "vqa-v2", "--data", "x", "--validation", "y")
    with pytest.raises(UserError, match=r"`mixture` takes no single place of its data.*`task.parts`"):
        data_keys("mixture", "x")


def test_a_name_on_a_hub_stays_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = {"name": "hf-dataset", "path": "somebody/flowers"}
    assert absolute_files(task) == task
    (tmp_path / "somebody/flowers").mkdir(parents=True)
    assert absolute_files(task)["path"] == str(tmp_path / "somebody/flowers")
    shards = {"name": "webdataset", "train": "shards-{000..002}.tar"}
    (tmp_path / "shards-001.tar").touch()
    assert absolute_files(shards)["train"] == str(tmp_path / "shards-{000..002}.tar")


def test_the_evaluated_split_is_read_from_the_data_given() -> None:
    def asked(reader: str, split: str) -> Any:
        return named_task(parser().parse_args(["eval", "run", "--task", reader, "--data", "/x", "--split", split]))

    assert asked("jsonl", "test") == {"name": "jsonl", "train": "/x", "test": "/x"}
    assert asked("hf-dataset", "test") == {"name": "hf-dataset", "path": "/x", "test": "test"}
    assert asked("vqa-v2", "test") == {"name": "vqa-v2", "dir": "/x"}


def part(name: str, **options: Any) -> NamedPart:
    return NamedPart(name=name, **options)


MIXED = {"parts": {"a": {"name": "jsonl", "train": "/a.jsonl"}, "b": {"name": "flickr8k", "dir": "/b"}}}


@pytest.mark.parametrize(
    ("trained", "evaluated", "split", "expected"),
    [
        (part("jsonl", train="/a.jsonl"), part("jsonl", train="/a.jsonl"), "train", True),
        (part("jsonl", train="/a.jsonl"), part("jsonl", train="/x/../a.jsonl", test="/a.jsonl"), "test", True),
        (part("jsonl", train="/a.jsonl"), part("jsonl", train="/b.jsonl"), "train", False),
        (part("hf-dataset", path="/x"), part("hf-dataset", path="/y"), "train", False),
        (part("hf-dataset", path="/x"), part("hf-dataset", path="/x"), "train", True),
        (part("hf-dataset", path="/x"), part("hf-dataset", path="/x", test="test"), "test", False),
        (part("vqa-v2", dir="/x"), part("vqa-v2", dir="/x"), "train", True),
        (part("vqa-v2", dir="/x"), part("vqa-v2", dir="/x"), "validation", False),
        (part("flickr8k", dir="/x"), part("flickr8k", dir="/x"), "validation", False),
        (part("mixture", **MIXED), part("mixture", parts={"c": MIXED["parts"]["a"]}), "train", True),
        (part("mixture", **MIXED), part("mixture", parts={"c": {"name": "jsonl", "train": "/c"}}), "train", False),
        (part("mixture", **MIXED), part("flickr8k", dir="/b"), "train", True),
        (part("mixture", **MIXED), part("flickr8k", dir="/b"), "test", False),
        (part("easy-vqa"), part("easy-vqa"), "train", True),
        (part("easy-vqa"), part("easy-vqa"), "test", False),
    ],
)
def test_what_was_learned_is_recognised(trained: NamedPart, evaluated: NamedPart, split: str, expected: bool) -> None:
    recipe = load_recipe({"task": {"name": trained.name, **trained.options()}, "train": {"steps": 3}})
    found = EvaluatedSet(evaluated, task_of(evaluated), split, [])
    assert is_trained_on(recipe, found, is_own=False) == expected
    untrained = load_recipe(recipe, ["train.steps=0"])
    assert not is_trained_on(untrained, found, is_own=False)


def test_what_was_held_out_was_not_learned() -> None:
    task = {"name": "jsonl", "train": "/a.jsonl"}
    recipe = load_recipe({"task": task, "train": {"steps": 3, "hold_out": 2}})
    for split, expected in ((HELD_OUT, False), ("train", True)):
        found = EvaluatedSet(recipe.task, make_task(recipe), split, [])
        assert is_trained_on(recipe, found, is_own=True) == expected


def test_media_may_be_fetched_for_every_reader_of_names() -> None:
    assert train_task("small", "--task", "jsonl", "--data", "a.jsonl", "--fetch-media")["fetch_media"] is True
    assert not train_task("small", "--task", "jsonl", "--data", "a.jsonl").get("fetch_media")
    evaluated = named_task(parser().parse_args(["eval", "run", "--task", "csv", "--data", "a.csv", "--fetch-media"]))
    assert evaluated == {"name": "csv", "train": str(Path("a.csv").absolute()), "fetch_media": True}
    with pytest.raises(UserError, match=r"--fetch-media is for --data or --task"):
        named_task(parser().parse_args(["eval", "run", "--fetch-media"]))
    with pytest.raises(UserError, match=r"vqa-v2.*fetch_media"):
        make_task(load_recipe({"task": {"name": "vqa-v2", "dir": "."}}, [("task.fetch_media", True)]))


def test_the_encoder_is_that_of_the_data(tmp_path: Path) -> None:
    sounds = forms.FORMS["classes_of_sounds"](tmp_path / "data").place
    words = ["audio", "--data", sounds, "--encoder", "mine"]
    recipe = load_recipe(*training_recipe(parser().parse_args(["train", *words])))
    assert {name: encoder.id for name, encoder in recipe.encoders.items()} == {"audio": "mine"}
