"""`KEY=VALUE`: a key of type text takes the value verbatim, every other key reads it as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perceptune.config.recipe import Recipe, load_recipe
from perceptune.errors import UserError
from perceptune.evaluation.score_files.run import score_files

# What YAML would cut, refuse, or take for something else.
TEXTS = ["what #1 is it?", "Question: {prompt} Answer:", "*x*", "@x", "2024", "yes", "off", "1e3", "- a", "[a, b]",
         "{x}", "'quoted'", '"', "a: b", "~", "%x", "&x", "!x", "|", " kept ", "line\nline", ""]  # fmt: skip


def value_of(recipe: Recipe, key: str) -> Any:
    node: Any = recipe.model_dump()
    for part in key.split("."):
        node = node[part]
    return node


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["task.prompt", "text.template", "lm.id", "name", "eval.others.x.task.prompt_key"])
def test_text_is_taken_verbatim(key: str, text: str) -> None:
    other = ["eval.others.x.task.name=csv"] if "others" in key else []
    recipe = load_recipe({"task": "csv"}, [f"{key}={text}", *other])
    assert value_of(recipe, key) == text


def test_the_part_may_be_named_behind_its_keys() -> None:
    recipe = load_recipe({}, ["task.prompt=yes", "task.skip_missing=3", "task.name=csv"])
    assert recipe.task is not None
    assert recipe.task.options() == {"prompt": "yes", "skip_missing": 3}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("text.separator=null", None),
        ("cache.dir=", None),
        ("cache.dir=a #1", Path("a #1")),
        ("cache.features=off", "off"),
        ("train.freeze=[2024, yes, a b]", ("2024", "yes", "a b")),
        ("train.freeze=prompt", ("prompt",)),
        ("train.report_to=none", ()),
        ("train.report_to=[wandb, trackio]", ("wandb", "trackio")),
        ("init_from.rename={image: video, no: 1}", {"image": "video", "no": "1"}),
        ("lm=2024", "2024"),
        ("lm={id: 2024, revision: 1.10}", "2024"),
        ("train.steps=1_000", 1000),
        ("train.lr=2e-5", 2e-5),
        ("train.compile=yes", True),
        ("train.clip=null", None),
        ("encoders.image.mean=[0.5, 0.5, 0.5]", (0.5, 0.5, 0.5)),
        ("compare.seeds=[0, 1]", (0, 1)),
        ("text={template: 'a #1', max_tokens: 9}", "a #1"),
    ],
)
def test_other_keys_are_yaml(override: str, value: object) -> None:
    recipe = load_recipe({"init_from": "x"} if "init" in override else {}, [override])
    key = override.partition("=")[0]
    found = value_of(recipe, {"lm": "lm.id", "text": "text.template"}.get(key, key))
    assert found == value


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["text={template: 'Q: {prompt}', max_tokens: 9}", "text.target={target} #1"], "text.template", "Q: {prompt}"),
        (["encoders={image: a}", "encoders.image.size=9"], "encoders.image.id", "a"),
        (["train={steps: 9, lr: 2e-5}", "train.clip=null"], "train.lr", 2e-5),
        (["task={name: csv, prompt: 2024}", "task.skip_missing=3"], "task.prompt", "2024"),
    ],
)
def test_a_key_may_follow_a_mapping(overrides: list[str], key: str, value: object) -> None:
    assert value_of(load_recipe({}, overrides), key) == value


def test_a_part_of_a_mixture_may_get_a_key_more() -> None:
    recipe = load_recipe(
        {"task": "mixture"}, ["task.parts={a: {name: folder, train: x}, b: csv}", "task.parts.a.prompt=2024"]
    )
    assert recipe.task is not None
    assert recipe.task.options()["parts"]["a"] == {"name": "folder", "train": "x", "prompt": "2024"}


def test_unions_of_text_with_lists_take_both() -> None:
    task = load_recipe({"task": "csv"}, ["task.target_key=[a, 2024]"]).task
    assert task is not None
    assert task.options()["target_key"] == ["a", "2024"]
    for text in ("2024", "[not closed", "[a] b"):
        task = load_recipe({"task": "csv"}, [f"task.target_key={text}"]).task
        assert task is not None
        assert task.options()["target_key"] == text
    files = load_recipe(
        {"task": "coco-captions"}, ["task.annotations.train=2017.json", "task.annotations.test=[no, b]"]
    )
    assert files.task is not None
    assert files.task.options()["annotations"] == {"train": "2017.json", "test": ["no", "b"]}


def test_parts_of_a_mixture_have_the_keys_of_their_tasks() -> None:
    recipe = load_recipe(
        {"task": "mixture"},
        ["task.parts.method.prompt=Q: {prompt} #1", "task.parts.method.prompt_key=no", "task.parts.method.weight=2",
         "task.parts.method.name=csv"],
    )  # fmt: skip
    assert recipe.task is not None
    assert recipe.task.options()["parts"]["method"] == {
        "prompt": "Q: {prompt} #1", "prompt_key": "no", "weight": 2, "name": "csv"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=*x*", r"`train\.steps`: `\*x\*` is not valid YAML"),
        ("train.steps=#3", r"`train\.steps`: `#3` is a comment to YAML"),
        ("train.clip= # none", r"`train\.clip`: ` # none` is a comment to YAML"),
        ("trian.x=*x*", r"unknown key `trian`"),
        ("decode.beams=@x", r"`decode\.beams`"),
        ("task.name=jsonll", "unknown task `jsonll`; did you mean `jsonl`"),
    ],
)
def test_a_value_that_is_neither_names_its_key(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe({}, [override, "task.x=1"] if override.startswith("task") else [override])


def test_pairs_hold_values_as_they_are() -> None:
    recipe = load_recipe({"task": "jsonl"}, [("task.train", "null"), ("train.steps", 3), ("name", "*")])
    assert recipe.task is not None
    assert (recipe.task.options()["train"], recipe.train.steps, recipe.name) == ("null", 3, "*")


def test_options_of_a_metric_are_typed_too(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": 1, "prediction": "A"}\n')
    (tmp_path / "r.jsonl").write_text('{"id": 1, "references": ["a"]}\n')
    files = str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl")
    assert score_files(*files, ["exact"], options=["lowercase=yes"]).result["accuracy"] == 1
    with pytest.raises(UserError, match=r"cannot read @x"):
        score_files(*files, ["caption"], options=["df=@x"])
