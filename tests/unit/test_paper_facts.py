"""Every recipe of the papers against `recipes/paper/facts.yaml`: all keys, as they are resolved, and no others."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest

import facts
from facts import NOT_FACTS, Fact, Values
from perceptune.data.build_task import make_task
from perceptune.data.holdout_split import selecting_splits

NOTHING = "(no such key)"
RECIPES = facts.table()["recipes"]


@cache
def found(name: str) -> Values:
    return facts.found(name)


def mistakes(name: str, wanted: Values) -> list[str]:
    """What is wrong with a recipe, key by key, with the place that says so."""
    known, is_there = facts.facts(name), found(name)
    return [
        f"recipes/paper/{name}.yaml: `{key}` should be {wanted.get(key, NOTHING)!r} "
        f"and is {is_there.get(key, NOTHING)!r} ({known[key].said['source'] if key in known else 'the default'})"
        for key in sorted({**wanted, **is_there})
        if wanted.get(key, NOTHING) != is_there.get(key, NOTHING)
    ]


def test_every_recipe_has_facts_and_all_facts_have_a_recipe() -> None:
    assert facts.files().keys() == RECIPES.keys()


def test_the_recipes_are_what_the_facts_say() -> None:
    """`schema` is checked first: a default of the library that has changed shows itself once, not in all recipes."""
    assert facts.schema() == {name: facts.table()["defaults"].get(name, {}) for name in facts.schema()}
    wrong = [one for name in RECIPES for one in mistakes(name, facts.wanted(name))]
    assert not wrong, "\n".join(["", *wrong])


def test_defaults_that_nothing_uses_are_no_facts() -> None:
    assert facts.table()["defaults"].keys() <= facts.schema().keys()


def test_each_fact_that_is_changed_is_noticed() -> None:
    """Twenty of them, drawn at random: one line, which names file, key, both values and the source."""
    chance = random.Random(7)
    places = sorted((name, key) for name in RECIPES for key in facts.facts(name))
    for name, key in chance.sample(places, 20):
        wanted = facts.wanted(name)
        key = next(one for one in wanted if one == key or one.startswith(f"{key}."))
        changed = mistakes(name, {**wanted, key: "something else"})
        assert len(changed) == 1, (name, key)
        assert all(part in changed[0] for part in (f"recipes/paper/{name}.yaml", f"`{key}`", "'something else'"))
    assert mistakes("vqa-v2", {k: v for k, v in facts.wanted("vqa-v2").items() if k != "train.clip"}) == [
        "recipes/paper/vqa-v2.yaml: `train.clip` should be '(no such key)' and is None (accelerate_training/vqa.py)"
    ]
    assert mistakes("vqa-v2", {**facts.wanted("vqa-v2"), "train.new": 1}) == [
        "recipes/paper/vqa-v2.yaml: `train.new` should be 1 and is '(no such key)' (the default)"
    ]


def test_what_is_evaluated_and_chosen_on_is_there() -> None:
    """Another split than the reported one chooses the checkpoint."""
    for name in RECIPES:
        recipe = facts.loaded(name)
        task = make_task(recipe)
        reported = recipe.eval.split or task.splits[-1]
        assert reported in (*task.splits, "held-out"), name
        if recipe.eval.every is not None:
            assert selecting_splits(task.splits)[0] != reported, name


def all_facts() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for kind in ("groups", "recipes"):
        for name, entry in facts.table()[kind].items():
            for key, said in entry.items():
                if key not in (*NOT_FACTS, "include"):
                    yield name, key, said


@pytest.mark.parametrize("rule", ["keys", "follow", "source", "why"])
def test_facts_are_complete(rule: str) -> None:
    for name, key, said in all_facts():
        fact, where = Fact(said), (name, key)
        if rule == "keys":
            assert said.keys() <= {"paper", "code", "follow", "value", "source", "why"}, where
            assert ("value" in said) == (fact.follow == "ours"), where
        elif rule == "follow":
            assert fact.follow in ("paper", "code", "ours"), where
            assert fact.follow == "ours" or fact.follow in said, where
            given = [said[who] for who in ("paper", "code") if who in said]
            assert "follow" in said or all(one == given[0] for one in given), (
                *where,
                "they differ: say whom to follow",
            )
        elif rule == "source":
            assert said["source"], where
        else:
            assert "why" in said or not (fact.differs or fact.follow == "ours"), where


def test_every_group_is_used() -> None:
    groups = facts.table()["groups"]
    used = {name for entry in RECIPES.values() for name in entry["groups"]}
    while more := {name for group in used for name in groups[group].get("include", ())} - used:
        used |= more
    assert used == groups.keys()
