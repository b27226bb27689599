"""What each recipe under `recipes/paper` should be (`recipes/paper/facts.yaml`), and what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from perceptune.config.overrides import METHODS
from perceptune.config.recipe import Recipe, load_recipe, recipes_dir
from perceptune.config.registry import leaf
from perceptune.config.schema import EncoderConfig, InitConfig, NamedPart, OtherSet
from perceptune.models.backbone import method_options

FOLDER = recipes_dir() / "paper"
FILE = FOLDER / "facts.yaml"
NOT_FACTS = ("row", "groups")
Values = dict[str, Any]  # by dotted key


class Fact(NamedTuple):
    """What one key of a run was."""

    said: Mapping[str, Any]  # `paper`, `code`, `follow`, `value`, `source`, `why`

    @property
    def follow(self) -> str:
        """Whose value is taken: the only one that is there, unless the fact says so."""
        return str(self.said.get("follow") or ("paper" if "paper" in self.said else "code"))

    @property
    def value(self) -> Any:
        """The value that the recipe should have."""
        return self.said["value" if self.follow == "ours" else self.follow]

    @property
    def differs(self) -> bool:
        """Whether somebody's value is not the one that is taken."""
        return any(self.said.get(who, self.value) != self.value for who in ("paper", "code"))


@cache
def table() -> dict[str, Any]:
    """The file as it is written."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(FILE.read_text(encoding="utf-8"), loader))


@cache
def files() -> dict[str, Path]:
    """The recipes that are there, by their names below `recipes/paper`."""
    found = (path for path in FOLDER.rglob("*.yaml") if path != FILE)
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in found}


def facts(name: str) -> dict[str, Fact]:
    """The facts of a recipe by dotted key: those of its groups, of which the later one wins, then its own."""
    entry = table()["recipes"][name]
    found: dict[str, Fact] = {}
    for group in entry["groups"]:
        found |= _group(group)
    return found | {key: Fact(said) for key, said in entry.items() if key not in NOT_FACTS}


def _group(name: str) -> dict[str, Fact]:
    group = table()["groups"][name]
    found: dict[str, Fact] = {}
    for included in group.get("include", ()):
        found |= _group(included)
    return found | {key: Fact(said) for key, said in group.items() if key != "include"}


def wanted(name: str) -> Values:
    """All keys of a recipe as the facts have them. A value `=key` is that of another key."""
    given = {key: fact.value for key, fact in facts(name).items()}
    defaults, kind = table()["defaults"], METHODS[given.get("backbone", "splice")]
    values = dict(defaults["Recipe"])
    for place, block in _places(given):
        _put(values, place, None)
        values |= {f"{place}.{key}": value for key, value in defaults.get(block, {}).items()}
    for place, options in (
        ("method", leaf(kind, given["method.name"]).module.METHOD.Options),
        *((key.removesuffix(".name"), leaf("tasks", given[key]).module.TASK.Options) for key in _tasks(given)),
    ):
        for block in _blocks(options):
            values |= {f"{place}.{key}": value for key, value in defaults.get(block, {}).items()}
    for key, value in given.items():
        _put(values, key, value)
    for key, value in values.items():
        if isinstance(value, str) and value.startswith("="):
            values[key] = values[value[1:]]
    return values | {"name": name.rpartition("/")[2]}


@cache
def loaded(name: str) -> Recipe:
    """The recipe of this name below `recipes/paper`."""
    return load_recipe(files()[name])


def found(name: str) -> Values:
    """All keys of a recipe as the library resolves them, with those of its method and tasks."""
    recipe = loaded(name)
    data = recipe.model_dump(mode="json")
    data["method"] = {"name": recipe.method.name, **method_options(recipe).model_dump(mode="json")}
    data["task"] = _task(recipe.task)
    for label, other in recipe.eval.others.items():
        data["eval"]["others"][label]["task"] = _task(other.task)
    return flat(data)


def schema() -> dict[str, Values]:
    """The library's defaults: those of a recipe, of an encoder and so on, and of each kind of method and task."""
    recipe = flat(Recipe().model_dump(mode="json", exclude={"name", "encoders", "method", "task"}))
    blocks = {"Recipe": recipe} | {part.__name__: _defaults(part) for part in (EncoderConfig, InitConfig, OtherSet)}
    for name in table()["recipes"]:
        given = {key: fact.value for key, fact in facts(name).items()}
        method = leaf(METHODS[given.get("backbone", "splice")], given["method.name"]).module.METHOD
        for part in (method, *(leaf("tasks", given[key]).module.TASK for key in _tasks(given))):
            blocks |= {block: _own(options) for block, options in _blocks(part.Options).items()}
    return blocks


def flat(data: Any, place: str = "") -> Values:
    """Nested keys as dotted ones; an empty mapping is a value."""
    if not isinstance(data, dict) or not data:
        return {place: data}
    inside = (flat(value, f"{place}.{key}" if place else str(key)) for key, value in data.items())
    return {key: value for values in inside for key, value in values.items()}


def _task(part: NamedPart | None) -> Any:
    if part is None:
        return None
    options = leaf("tasks", part.name).module.TASK.Options.model_validate(part.options())
    return {"name": part.name, **options.model_dump(mode="json")}


def _places(given: Values) -> Iterator[tuple[str, str]]:
    """Parts that a recipe has several of, or none, with the block of their defaults."""
    parts = [key.split(".") for key in given]
    yield from dict.fromkeys((f"encoders.{part[1]}", "EncoderConfig") for part in parts if part[0] == "encoders")
    yield from dict.fromkeys((f"eval.others.{part[2]}", "OtherSet") for part in parts if part[:2] == ["eval", "others"])
    if any(part[0] == "init_from" for part in parts):
        yield "init_from", "InitConfig"


def _tasks(given: Values) -> list[str]:
    """Keys that name a task."""
    return [key for key in given if key == "task.name" or key.endswith(".task.name")]


def _blocks(options: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The classes of which options are made, the most general one first, by the names of their blocks."""
    return {
        part.__qualname__.removesuffix(".Options"): part
        for part in reversed(options.__mro__)
        if issubclass(part, BaseModel) and part is not BaseModel and part.__module__.startswith("perceptune.")
    }


def _own(options: type[BaseModel]) -> Values:
    """Defaults that a class gives itself."""
    return {key: value for key, value in _defaults(options).items() if key.partition(".")[0] in options.__annotations__}


def _defaults(model: type[BaseModel]) -> Values:
    fields = {name: field for name, field in model.model_fields.items() if not field.is_required()}
    made = model.model_construct(
        **{name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    )  # type: ignore[call-arg]
    return flat(made.model_dump(mode="json", include=set(fields))) if fields else {}


def _put(values: Values, key: str, value: Any) -> None:
    """Sets a key in place of what was there, above and below it."""
    for other in [other for other in values if f"{other}.".startswith(f"{key}.") or key.startswith(f"{other}.")]:
        del values[other]
    if value is not None or "." in key:
        values |= flat(value, key)
