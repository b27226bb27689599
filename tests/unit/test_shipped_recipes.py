"""Every shipped recipe with every reader and method: whatever replaces a part, no key of the old one is in its way."""

from __future__ import annotations

from functools import cache

import pytest

from perceptune.config.recipe import find_recipe, load_recipe, read_yaml, recipe_names
from perceptune.config.registry import leaf, leaves
from perceptune.data.build_task import data_keys, make_task
from perceptune.data.tasks.base import check_split
from perceptune.errors import UserError
from perceptune.models.backbone import method_options

READERS = [name for name, one in leaves("tasks").items() if one.module.TASK.data_option is not None]


@cache
def kinds_of_recipes() -> list[str]:
    """One recipe for each different pair of a task's keys and of splits that it evaluates."""
    found: dict[str, str] = {}
    for name in recipe_names():
        data = read_yaml(find_recipe(name))
        task, evaluated = data.get("task"), data.get("eval", {})
        keys = sorted(task) if isinstance(task, dict) else task
        found.setdefault(repr([keys, evaluated.get("split"), evaluated.get("during_split")]), name)
    return sorted(found.values())


def words(task: str) -> list[str]:
    return [f"task.name={task}", *(f"task.{key}={value}" for key, value in data_keys(task, "place").items())]


@pytest.mark.parametrize("reader", READERS)
def test_every_recipe_takes_every_reader(reader: str) -> None:
    for name in kinds_of_recipes():
        recipe = load_recipe(name, words(reader))
        task = make_task(recipe)
        for split in filter(None, (recipe.eval.split, recipe.eval.during_split)):
            check_split(split, task.splits)
        assert recipe.task is not None
        unknown = recipe.task.options().keys() - leaf("tasks", reader).module.TASK.Options.model_fields.keys()
        assert not unknown, name


@pytest.mark.parametrize("kind", ["methods", "qformer_methods"])
def test_every_recipe_takes_every_method(kind: str) -> None:
    shipped: dict[str, str] = {}
    for name in recipe_names():
        method = read_yaml(find_recipe(name)).get("method")
        shipped.setdefault(repr(sorted(method)) if isinstance(method, dict) else str(method), name)
    for name in shipped.values():
        if (load_recipe(name).backbone == "instructblip") == (kind == "qformer_methods"):
            for method in leaves(kind):
                options = load_recipe(name, [f"method.name={method}"])
                known = leaf(kind, method).module.METHOD.Options.model_fields.keys()
                assert options.method.options().keys() <= known, (name, method)


def test_what_was_replaced_is_said_and_what_was_given_stays(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("captions", ["task.train=x.tar", "task.name=webdataset"])
    assert recipe.task is not None
    assert recipe.task.options() == {"train": "x.tar", "metric": "CIDEr"}
    assert "left out, for they belong to what was replaced: `task.check_files`" in capsys.readouterr().err
    given = load_recipe("captions", [*words("webdataset"), "task.check_files=false"])
    with pytest.raises(UserError, match="unknown key `check_files`"):
        make_task(given)
    assert load_recipe("demo", [*words("jsonl"), "eval.split=tset"]).eval.split == "tset"
    capsys.readouterr()
    kept = load_recipe("captions", ["task.train=mine.jsonl"]).task
    assert kept is not None
    assert kept.options()["check_files"] is False
    assert load_recipe("small", ["method.name=epalm-lin"]).method.options()["prompt"] == "plain"
    assert capsys.readouterr().err == ""


def test_a_name_that_is_not_known_is_said() -> None:
    for key in ("task", "task.name"):
        with pytest.raises(UserError, match=r"unknown task `webdatset`; did you mean `webdataset`"):
            make_task(load_recipe("captions", [f"{key}=webdatset"]))


def test_a_method_that_is_replaced_takes_its_own_keys_along() -> None:
    recipe = load_recipe("captions", ["method.name=epalm"])
    assert "peft" not in recipe.method.options()
    assert method_options(recipe).n_levels == 6
    wrong = load_recipe({"method": {"name": "epalm", "peft": {}}})
    with pytest.raises(UserError, match="unknown key `peft`"):
        method_options(wrong)
