"""Noise on the features of training batches, and media that are left out of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import perceptune
import runs as dwarf_runs
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.slots._connector import LevelTokens
from perceptune.methods.slots._disturbance import draw_noise, drop_media
from perceptune.methods.slots.base import Injection, InjectionOptions
from perceptune.types import Draws, Features
from rows import SHAPE
from support import random_lm


def features_of(rows: tuple[int, ...] | None, order: int = 0) -> Features:
    """Features of a training batch with these seeds, or of no training."""
    number = 4 if rows is None else len(rows)
    draws = None if rows is None else Draws(rows, 0, order)
    return Features(torch.zeros(number, 2, 1, 24), torch.ones(number, dtype=torch.bool), draws)


def test_noise_has_the_deviation_asked_for() -> None:
    noise = draw_noise(features_of(tuple(range(1000))), 0.1)
    torch.testing.assert_close(noise.std(0), torch.full((2, 1, 24), 0.1), rtol=0.15, atol=0)
    assert noise.mean(0).abs().max() < 0.02


def test_a_share_of_the_media_is_left_out() -> None:
    given = features_of(tuple(range(1000)))
    assert (~drop_media("image", given, 0.1).present).float().mean() == pytest.approx(0.1, abs=0.03)


def test_a_row_is_disturbed_alike_in_any_batch() -> None:
    rows = tuple(range(40))
    whole, part, second = features_of(rows), features_of(rows[10:20]), features_of(rows, order=1)
    noise, present = draw_noise(whole, 1.0), drop_media("image", whole, 0.5).present
    assert torch.equal(draw_noise(part, 1.0), noise[10:20])
    assert torch.equal(drop_media("image", part, 0.5).present, present[10:20])
    assert not torch.equal(draw_noise(second, 1.0), noise)
    for other in (drop_media("image", second, 0.5), drop_media("audio", whole, 0.5)):
        assert not torch.equal(other.present, present)


def test_nothing_is_disturbed_outside_training() -> None:
    given = features_of(None)
    assert drop_media("image", given, 0.5) is given
    connector = LevelTokens(2, 24, standardize=True, noise=0.5)
    assert connector.training
    assert torch.equal(torch.stack(connector(given), 1), given.values)
    connector.std.fill_(2)
    disturbed = features_of((1, 2, 3, 4))
    assert torch.equal(torch.stack(connector(disturbed), 1), draw_noise(disturbed, 0.5)), "behind the standardisation"


def test_slots_of_a_training_batch_are_disturbed() -> None:
    options = InjectionOptions(n_levels=2, prompt="none", feature_noise=0.5, media_dropout=0.5)
    method = Injection(options, FrozenLM(random_lm("llama")), {"image": SHAPE})
    [calm] = method.build_slots({"image": features_of(None)}, 4)
    [slots] = method.build_slots({"image": features_of(tuple(range(40)))}, 40)
    assert 8 < slots.present.sum() < 32
    for layer, states in slots.states.items():
        assert (states - calm.states[layer][:1]).abs().amax((1, 2)).min() > 1e-3
    lost = next(seed for seed in range(40) if not slots.present[seed])
    assert method.build_slots({"image": features_of((lost,))}, 1) == [], "without media there are no slots"


def test_a_disturbed_training_resumes_to_the_bit(dwarfs: Path, tmp_path: Path) -> None:
    method = {"name": "epalm-lin", "n_levels": 2, "feature_noise": 0.3, "media_dropout": 0.5}
    given = dwarf_runs.recipe(dwarfs, method=method)
    perceptune.train(given, tmp_path / "whole")
    dwarf_runs.stop_after(given, tmp_path / "stopped", 3)
    perceptune.train(run=tmp_path / "stopped", resume=True)
    assert dwarf_runs.same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"feature_noise": 0.1, "standardize": False}, "`feature_noise` needs the features' standard deviations"),
        ({"media_dropout": 0.1, "slot_positions": "sequential"}, "`media_dropout` is for slots in front of the text"),
    ],
)
def test_what_cannot_be_disturbed_is_refused(options: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        InjectionOptions.model_validate(options)
