"""`eval` computes what `answer`, `predict`, `serve` and `verify` compute: the same bits, so the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import blips
import perceptune
import support
from perceptune.evaluation import evaluate, reference_answers
from perceptune.evaluation.batch_predict import predict
from perceptune.models.base import AdaptedModel
from perceptune.models.slots.model import SlotModel
from perceptune.serving.limits import Limits
from servers import load_runs

BFLOAT16 = {"train": support.train_section(steps=2, precision="bfloat16"), "eval": {"dtype": "bfloat16"}}


def _vicuna(dwarfs: Path, folder: Path) -> dict[str, Any]:
    return blips.recipe(blips.save_blip(folder / "blip", "llama"), dwarfs / "data/train.jsonl",
                        train=support.train_section(steps=2))  # fmt: skip


def _spliced(dwarfs: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    changes = {"train": support.train_section(steps=2), **changes}
    # A cache of its own: another test may have encoded the same images beside others, which rounds otherwise.
    own = {"cache": {"dir": str(folder / "cache")}}
    return support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", **changes, **own)


CASES = {
    "an InstructBLIP with a Vicuna-like LM": _vicuna,
    "slots": _spliced,
    "slots in bfloat16": lambda dwarfs, folder: _spliced(dwarfs, folder, **BFLOAT16),
    "an unfrozen LM": lambda dwarfs, folder: _spliced(
        dwarfs, folder, method={"name": "epalm", "n_levels": 2, "unfreeze": {"lm": 1e-3}}
    ),
}


class _Models:
    """Notes the model that each command answers with, and what it says."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[AdaptedModel] = []
        said = AdaptedModel.answer

        def answer(model: AdaptedModel, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(model)
            return said(model, *args, **kwargs)

        patch.setattr(AdaptedModel, "answer", answer)

    def take(self) -> AdaptedModel:
        model, self.seen = self.seen[-1], []
        return model


@pytest.mark.parametrize("case", CASES)
def test_every_command_answers_with_the_same_bits(
    case: str, dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    perceptune.train(CASES[case](dwarfs, tmp_path), run)
    models = _Models(monkeypatch)
    perceptune.evaluate(run)
    by_eval = models.take()
    predict(run, dwarfs / "data/train.jsonl")
    others = {"predict": models.take(), "answer": perceptune.load(run)}
    with pytest.MonkeyPatch.context() as patch:  # `verify` asks in the dtype of the training
        patch.setattr(
            reference_answers,
            "_read",
            lambda folder, read=reference_answers._read: {**read(folder), "dtype": _dtype(by_eval)},
        )
        reference_answers.verify_reference_answers(run)
    others |= {"verify": models.take(), "serve": load_runs([str(run)], Limits())["run"].model}
    samples = evaluate.evaluated_set(by_eval.recipe, split="train").samples[:4]
    expected = _computed(by_eval, samples)
    for name, model in others.items():
        assert model.dtype == by_eval.dtype
        assert torch.equal(_computed(model, samples), expected), name
        assert model.answer(samples) == by_eval.answer(samples), name


def _dtype(model: AdaptedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


@torch.no_grad()
def _computed(model: AdaptedModel, samples: Any) -> Tensor:
    """What depends on every block: logits, or the loss of a model that gives none."""
    batch = model.collate(samples)
    return model(batch) if isinstance(model, SlotModel) else model.loss(batch)[0]
