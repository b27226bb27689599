"""The keys under `decode`, from the recipe to the answers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import perceptune
import support
from perceptune.config.recipe import load_recipe
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.types import Decoding, Sample


@pytest.fixture(scope="module")
def asked(dwarfs: Path) -> tuple[AdaptedModel, list[Sample]]:
    model = perceptune.build(support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl"))
    return model, list(make_task(model.recipe).samples("train"))


def test_a_drawn_answer_depends_on_seed_question_and_picture_alone(
    asked: tuple[AdaptedModel, list[Sample]], tmp_path: Path
) -> None:
    model, samples = asked
    decoding = Decoding(8, sample=True, seed=3)
    together = model.answer(samples, decoding=decoding)
    assert [model.answer([sample], decoding=decoding)[0] for sample in samples] == together
    assert model.answer(samples[::-1], decoding=decoding, batch_size=5) == together[::-1]
    copy = shutil.copy(str(samples[0].media["image"]), tmp_path / "another.png")
    elsewhere = Sample("another id", {"image": Path(copy)}, samples[0].prompt)
    assert model.answer([elsewhere], decoding=decoding) == together[:1]
    assert model.answer(samples, decoding=replace(decoding, seed=4)) != together
    without = [replace(sample, media={}) for sample in samples[::2]]  # all of them ask the same
    assert len(set(model.answer(without, decoding=decoding))) == 1


def test_sampling_and_beams_exclude_each_other() -> None:
    with pytest.raises(UserError, match="`sample` draws with one beam"):
        load_recipe({"decode": {"sample": True, "beams": 3}})


def test_the_old_rule_for_beams_goes_with_nothing_that_changes_scores() -> None:
    for key, value in {"min_new_tokens": 2, "repetition_penalty": 1.5}.items():
        with pytest.raises(UserError, match=f"length_normalization: total.*{key}"):
            load_recipe({"decode": {"beams": 3, "length_normalization": "total", key: value}})


def test_prompt_and_answer_together_fit_the_positions(dwarfs: Path) -> None:
    """A prompt may then be longer than with a fixed number of new tokens; it still gets one."""
    recipe = support.recipe(dwarfs / "opt", dwarfs / "encoder", text={"template": "{prompt}"})
    long = Sample("long", {}, "a" * 120)  # and the start token, of 128 positions
    with pytest.raises(UserError, match="more than the LM's positions allow"):
        perceptune.build({**recipe, "decode": {"max_new_tokens": 20}}).answer([long])
    [answer] = perceptune.build({**recipe, "decode": {"max_length": 30}}).answer([long])
    assert len(answer) <= 1
    with pytest.raises(UserError, match=r"decode.max_length is 500, but the LM has 128 positions"):
        perceptune.build({**recipe, "decode": {"max_length": 500}})


def test_answers_come_from_a_lightened_lm_in_any_dtype(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl")
    perceptune.train(recipe, tmp_path / "run")
    laid_out: list[int] = []
    monkeypatch.setattr(
        "perceptune.models.slots.model.optimize_frozen", lambda lm, first, megabytes, compiled: laid_out.append(first)
    )
    perceptune.evaluate(tmp_path / "run")
    perceptune.evaluate(tmp_path / "run", overrides=["eval.dtype=bfloat16"])
    assert laid_out == [0, 0]  # the first layer that is trained through, as in the training
