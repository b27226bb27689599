"""A run's recipe as it is given to others: without what reveals more of its owner's machine than loading needs."""

import copy
import operator
import re
from collections.abc import Mapping
from functools import reduce
from typing import Any


def shared_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what reveals more of its owner's machine than loading needs."""
    shared = copy.deepcopy({**recipe, "init_from": None})
    for *sections, key in neighbour_keys(recipe):  # training captions stay with their owner
        reduce(operator.getitem, sections, shared)[key] = 0
    for key in ("task", "eval"):
        if key in shared:
            shared[key] = _without_folders(shared[key])
    if isinstance(cache := shared.get("cache"), dict):
        shared["cache"] = {**cache, "dir": None}
    return shared


def neighbour_keys(recipe: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys of a stored recipe by which consensus decoding reads the training's captions."""
    others = (recipe.get("eval") or {}).get("others") or {}
    sections: dict[tuple[str, ...], Any] = {("decode",): recipe.get("decode"), **{
        ("eval", "others", name, "decode"): other.get("decode") for name, other in others.items()}}  # fmt: skip
    return [
        (*place, "consensus", key)
        for place, section in sections.items()
        for key in ("neighbours", "regression")
        if ((section or {}).get("consensus") or {}).get(key)
    ]


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_without_folders(inside) for inside in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) and is_path(value) else value


def is_path(name: str) -> bool:
    """Return whether a name is a path, not one on a hub."""
    return bool(re.match(r"/|~|\.|[A-Za-z]:[/\\]", name))
