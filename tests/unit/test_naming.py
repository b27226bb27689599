"""The loss by which a new Q-Former's image tokens learn the words of the answers, with and without the LM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import blips
import perceptune
import support
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.errors import UserError
from perceptune.methods.qformer.base import word_grounding_loss
from perceptune.models.base import AdaptedModel

WORDS = torch.eye(8)


def loss(tokens: torch.Tensor, ids: list[list[int]], temperature: float = 0.1) -> float:
    """Rows of equal length; 0 is padding."""
    asked = torch.tensor(ids)
    return word_grounding_loss(tokens, WORDS[asked], asked, (asked != 0).long(), temperature).item()


def test_a_token_that_names_the_word_lowers_it() -> None:
    ids = [[1, 2, 0], [3, 4, 4]]
    named = torch.stack([WORDS[[1, 2]], WORDS[[3, 4]]])
    other = torch.stack([WORDS[[6, 7]], WORDS[[6, 7]]])
    swapped = named.flip(0)
    assert loss(other, ids) == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-4)  # nothing is told of four words
    assert loss(named, ids) < loss(other, ids) < loss(swapped, ids)
    assert loss(3 * named, ids) == pytest.approx(loss(named, ids))  # directions alone count


def test_one_word_named_is_the_closed_form() -> None:
    tokens = WORDS[torch.tensor([[1], [2]])]
    expected = -torch.tensor([10.0, 0.0]).log_softmax(0)[0].item()
    assert loss(tokens, [[1], [2]]) == pytest.approx(expected)


def test_what_every_answer_says_does_not_count() -> None:
    tokens = WORDS[torch.tensor([[1], [2]])]
    assert loss(tokens, [[6], [6]]) == 0
    spoken = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    asked = torch.tensor([[6], [6]])
    word_grounding_loss(spoken, WORDS[asked], asked, torch.ones(2, 1).long(), 0.1).backward()
    assert spoken.grad is not None
    assert not spoken.grad.any()


def surprise(model: AdaptedModel, data: Path) -> float:
    """The loss of all samples as one batch, without dropout."""
    samples = list(task_of(NamedPart.model_validate({"name": "jsonl", "train": str(data)})).samples("train"))
    model.method.train()
    with torch.no_grad():
        loss, tokens = model.loss(model.collate(samples))
    return loss.item() / tokens


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_it_is_learnt_without_the_lm_and_gone_on_from_with_it(
    dwarfs: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blip, data = blips.save_blip(tmp_path / "blip", kind), dwarfs / "data/train.jsonl"
    method: dict[str, Any] = {"name": "full", "naming": 1.0, "uses_lm_loss": False, "dropout": False}
    train = support.train_section(steps=30, lr=3e-3)
    with monkeypatch.context() as patched:
        patched.setattr("perceptune.lm.frozen_blip.FrozenBlip.loss", None)
        perceptune.train(blips.recipe(blip, data, method=method, train=train), tmp_path / "named")
    untrained, named = perceptune.build(blips.recipe(blip, method=method)), perceptune.load(tmp_path / "named")
    assert surprise(named, data) < surprise(untrained, data) - 0.1
    recipe = blips.recipe(
        blip,
        data,
        method={**method, "uses_lm_loss": True},
        init_from={"run": str(tmp_path / "named"), "may_differ": ["method"]},
    )
    perceptune.train({**recipe, "train": support.train_section(steps=1)}, tmp_path / "spoken")


def test_without_the_lm_and_without_naming_nothing_is_left(tmp_path: Path) -> None:
    blip = blips.save_blip(tmp_path / "blip", "llama")
    with pytest.raises(UserError, match="nothing to learn from"):
        perceptune.build(blips.recipe(blip, method={"name": "full", "uses_lm_loss": False}))
