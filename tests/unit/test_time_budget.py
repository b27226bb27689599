"""How many steps fit into the minutes that a user allows."""

from __future__ import annotations

from typing import Any

import pytest

from perceptune.config.recipe import load_recipe
from perceptune.errors import UserError
from perceptune.training.time_budget import Costs, require_minutes, settled_steps


def costs(**changes: Any) -> Costs:
    known = {
        "elapsed": 30.0, "steps": (2.0, *[0.5] * 19), "again": (0.25,) * 20, "features": 0.0,
        "epochs_with_features": 1.0, "epoch": 100.0, "validation": None,
    }  # fmt: skip
    return Costs(**{**known, **changes})


def settled(minutes: float, given: Costs, texts: Any = None, **recipe: Any) -> tuple[dict[str, Any], str]:
    keys, line = settled_steps(given, minutes, lambda steps: texts and texts(steps), load_recipe(recipe))
    return dict(keys), line  # type: ignore[arg-type]


def test_steps_of_the_first_epoch_count_as_they_were_timed_first() -> None:
    keys, line = settled(2, costs())
    assert keys == {"train.steps": 260, "train.warmup_steps": 26, "eval.patience": None}
    assert line == "20 steps took 11.5 s: 260 steps fit into 2 minutes", "100 of 0.5 s, 160 of 0.25 s in the 90 s left"


@pytest.mark.parametrize("minutes", [0.7, 1, 2, 5.5, 30])
@pytest.mark.parametrize("features", [0.0, 40.0])
@pytest.mark.parametrize("validation", [None, 0.5, 60.0])
@pytest.mark.parametrize("epoch", [3.5, 100.0, 1e6])
def test_the_time_is_used_and_not_exceeded(
    minutes: float, features: float, validation: float | None, epoch: float
) -> None:
    given = costs(features=features, validation=validation, epoch=epoch)
    if (validation or 0) + given.seconds(1) > 60 * minutes - given.elapsed:
        with pytest.raises(UserError, match="too short for one step"):
            settled(minutes, given)
        return
    keys, _ = settled(minutes, given)
    steps, every = keys["train.steps"], keys.get("eval.every")
    validations = 0 if every is None else -(-steps // every)
    assert validations <= 10
    took = given.elapsed + given.seconds(steps) + validations * (validation or 0)
    assert took <= 60 * minutes
    assert took + 0.51 + features / epoch + 10 * (validation or 0) > 60 * minutes


def test_texts_are_kept_if_that_pays() -> None:
    """Their states cost 20 s, and each step is then as quick as with them."""
    keys, _ = settled(2, costs(), lambda steps: 20.0 if steps > 100 else None)
    assert keys["train.steps"] == 280
    keys, _ = settled(1, costs(), lambda steps: 20.0 if steps > 100 else None)
    assert keys["train.steps"] == 60, "30 s of 0.5 s each"


def test_evaluations_are_a_tenth_apart_and_take_a_part_of_the_time() -> None:
    recipe = {"eval": {"every": "epoch", "patience": 3}, "train": {"steps": 7, "warmup_steps": 5}}
    keys, line = settled(2, costs(validation=1.0), **recipe)
    assert keys == {"train.steps": 220, "train.warmup_steps": 5, "eval.patience": None, "eval.every": 22}
    assert line.endswith("in place of the recipe's 7; `eval.patience` is left out, as the time decides")
    keys, _ = settled(2, costs(validation=25.0))
    assert keys["eval.every"] == keys["train.steps"], "one at the end"


def test_too_short_a_time_names_one_that_fits() -> None:
    with pytest.raises(
        UserError, match=r"--minutes 0.5 is too short for one step: 20 steps take about 10.0 s, after 30"
    ):
        settled(0.5, costs())
    with pytest.raises(UserError, match=r"give at least 0.51 minutes"):
        settled(0.5, costs())
    assert settled(0.51, costs())[0]["train.steps"] == 1


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_a_time_is_positive(minutes: float) -> None:
    with pytest.raises(UserError, match="positive number of minutes"):
        require_minutes(minutes, [], resume=False)


@pytest.mark.parametrize("override", ["train.steps=3", "train.epochs=2", ("train.steps", 3)])
def test_one_length_is_given(override: Any) -> None:
    with pytest.raises(UserError, match=r"both say how long to train: leave one out"):
        require_minutes(1, ["train.lr=1", override], resume=False)
    require_minutes(1, ["train.steps=null"], resume=False)
    with pytest.raises(UserError, match="goes with a new run"):
        require_minutes(1, [], resume=True)
