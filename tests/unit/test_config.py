"""Recipes: defaults in one place, unknown keys refused with the nearest valid one, every shipped recipe valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from perceptune.config.overrides import METHODS
from perceptune.config.recipe import Recipe, find_recipe, load_recipe, recipe_names
from perceptune.config.registry import leaf
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.models.backbone import method_leaf


def test_a_name_stands_for_a_part() -> None:
    recipe = load_recipe(
        {"lm": "facebook/opt-2.7b", "encoders": {"image": "x/y"}, "method": "epalm-lin", "task": "easy_vqa"}
    )
    assert (recipe.lm.id, recipe.encoders["image"].id, recipe.method.name) == ("facebook/opt-2.7b", "x/y", "epalm-lin")
    assert recipe.task is not None
    assert recipe.task.name == "easy_vqa"


@pytest.mark.parametrize(
    ("data", "key", "hint"),
    [
        ({"trian": {}}, "trian", "`train`"),
        ({"train": {"batchsize": 3}}, "train.batchsize", "`batch_size`"),
        ({"encoders": {"image": {"siez": 3}}}, "encoders.image.siez", "`size`"),
        ({"decode": {"beam": 3}}, "decode.beam", "`beams`"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(data: dict[str, object], key: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"unknown key `{key}`; did you mean {hint}"):
        load_recipe(data)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=many", "`train.steps`.*integer"),
        ("train.lr=-1", "`train.lr`.*greater than 0"),
        ("train.precision=float16", "`train.precision`.*float32"),
        ("train.steps", "not of the form"),
        ("seed.x=1", "`seed`.*valid integer"),
        ("text.target=nothing", "must contain {target}"),
    ],
)
def test_a_wrong_value_names_its_key(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe({}, [override])


def test_overrides_reach_into_shorthands() -> None:
    recipe = load_recipe({"method": "epalm", "lm": "a"}, ["method.n_levels=2", "lm.revision=v1", "train.lr=2e-5"])
    assert recipe.method.options() == {"n_levels": 2}
    assert (recipe.lm.id, recipe.lm.revision, recipe.train.lr) == ("a", "v1", 2e-5)


def test_a_bare_off_of_yaml_is_the_word() -> None:
    assert load_recipe({}, ["cache.features=off"]).cache.features == "off"
    assert load_recipe({"train": {"frozen_dropout": False}}).train.frozen_dropout == "off"


def test_a_recipe_survives_its_own_dump(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["train.steps=7"])
    (tmp_path / "again.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_every_shipped_recipe_is_valid() -> None:
    names = recipe_names()
    assert len(names) >= 8
    for name in names:
        recipe = load_recipe(name)
        found = method_leaf(recipe)
        found.module.METHOD.Options(**{**found.defaults, **recipe.method.options()})
        if recipe.task is not None:
            make_task(recipe)


def leaves_of(data: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        flat |= leaves_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_hold_differences_only(name: str) -> None:
    """A default that is written down a second time is a default that will disagree one day."""
    defaults = leaves_of(Recipe().model_dump(mode="json"))
    written = yaml.safe_load(find_recipe(name).read_text())
    method = written.pop("method")
    written.pop("encoders", None)
    written.pop("task", None)
    restated = [key for key, value in leaves_of(written).items() if key in defaults and defaults[key] == value]
    found = leaf(METHODS[written.get("backbone", "splice")], method["name"])
    standard = {k: f.default for k, f in found.module.METHOD.Options.model_fields.items()} | found.defaults
    assert restated + [key for key, value in method.items() if key != "name" and standard[key] == value] == []


def test_the_nearest_recipe_is_offered() -> None:
    with pytest.raises(UserError, match="did you mean `paper/epalm`"):
        load_recipe("paper/epalmm")


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("train: [")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML"):
        load_recipe(path)
    path.write_text("- a list")
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load_recipe(path)


def test_data_files_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_text("")
    path = tmp_path / "r.yaml"
    path.write_text("task: {name: jsonl, train: my.jsonl}")
    task = load_recipe(path).task
    assert task is not None
    assert task.options()["train"] == str(tmp_path / "my.jsonl")
