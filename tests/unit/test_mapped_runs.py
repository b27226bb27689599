"""Mappers in a model that is built from a recipe: slots in the text, random tokens of training batches, refusals."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
import runs as dwarf_runs
import support
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.models.text_format import Batch
from perceptune.training.batch_loader import BatchLoader
from perceptune.types import Draws
from perceptune.utils.distributed import World

POOLED = {"tokens": "all", "mapper": "attn-pool", "mapper_queries": 3}


def built(dwarfs: Path, **method: Any) -> Any:
    train = support.train_section(accumulate=2)
    return perceptune.build(dwarf_runs.recipe(dwarfs, method=method, train=train))


@pytest.mark.parametrize(
    ("given", "slots"),
    [
        ({}, 1), ({"tokens": "all"}, 5), (POOLED, 3), ({"tokens": "all", "mapper": "grid", "mapper_grid": 2}, 5),
        ({"tokens": "all", "mapper": "space-to-depth"}, 1), ({"tokens": "all", "mapper": "group-mean"}, 2),
    ],
)  # fmt: skip
def test_the_text_has_a_column_for_each_mapped_token(dwarfs: Path, given: dict[str, Any], slots: int) -> None:
    model = built(dwarfs, name="limber", slot_positions="sequential", **given)
    assert model.text.slots_in_text == {"image": slots}
    sample = next(iter(make_task(model.recipe).samples("train")))
    assert sum(token < 0 for token in model.text.prompt_row(sample).ids) == slots
    assert len(model.answer([sample])) == 1
    loss, _ = model.loss(model.collate([sample]))
    assert torch.isfinite(loss)


def batches(model: Any, folder: Path, step: int) -> list[Batch]:
    with contextlib.closing(BatchLoader(model, make_task(model.recipe), folder, World())) as loader:
        return [one for one in loader.batches(step) if one is not None]


def test_training_batches_carry_seeds_that_depend_on_step_sample_and_epoch_alone(dwarfs: Path, tmp_path: Path) -> None:
    model = built(dwarfs, name="depalm-rand")
    first, again, later = (batches(model, tmp_path, step) for step in (3, 3, 4))
    seeds = [[one.features["image"].draws for one in made] for made in (first, again, later)]
    assert seeds[0] == seeds[1]
    (one, other), (after, _) = seeds[0], seeds[2]
    assert isinstance(one, Draws)
    assert one.step == other.step != after.step
    assert len(set(one.rows + other.rows + after.rows)) == 6
    samples = list(make_task(model.recipe).samples("train"))[:2]
    assert model.collate(samples).features["image"].draws is None, "nothing is drawn outside training"


def test_a_training_step_sees_some_tokens_and_an_answer_all(dwarfs: Path, tmp_path: Path) -> None:
    model = built(dwarfs, name="depalm-rand")
    [drawn, _] = batches(model, tmp_path, 0)
    widths = [slot.width for slot in model._slots(drawn) if slot.name == "image"]
    samples = list(make_task(model.recipe).samples("train"))[:2]
    whole = [slot.width for slot in model.prompt(samples).slots if slot.name == "image"]
    assert widths[0] < whole[0] == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mapper": "qp", "mapper_queues": 4}, "did you mean `mapper_queries`"),
        ({"mapper": "grid"}, "`mapper: grid` works on all tokens of a level: `tokens: all`"),
        ({"mapper": "group-mean", "tokens": "all", "mapper_group": 3}, "2 x 2 patches"),
    ],
)
def test_a_mistake_is_one_clear_error(dwarfs: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        built(dwarfs, name="limber", **given)
