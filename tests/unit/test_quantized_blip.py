"""An InstructBLIP whose LM is held in 8 or 4 bits: the Q-Former is not, and learns what it would."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import blips
import perceptune
import support
from perceptune.errors import UserError
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.types import Sample

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
KINDS = ("t5", "llama", "blip2-opt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose LMs are far from chaos: rounding moves what comes out of them by as little as what goes in."""
    root = tmp_path_factory.mktemp("quantized")
    for kind in KINDS:
        blips.save_blip(root / kind, kind)
        model = blips.random_blip(kind)
        with torch.no_grad():
            for parameter in model.language_model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(0.25)
        model.save_pretrained(root / kind)
    support.save_data(root / "data")
    return root


def model_of(folder: Path, kind: str, bits: str | None, method: str = "head") -> InstructBlipModel:
    lm = {"id": str(folder / kind), "quantization": bits}
    return cast(InstructBlipModel, perceptune.build(blips.recipe(folder / kind, method=method, lm=lm)))


def samples(folder: Path) -> list[Sample]:
    asked = [("color?", "red"), ("what color is this picture?", "blue")]
    return [Sample(str(i), {"image": folder / f"data/train{i}.png"}, q, (a,)) for i, (q, a) in enumerate(asked)]


def learnt(model: InstructBlipModel, rows: list[Sample]) -> Tensor:
    loss, _ = model.loss(model.collate(rows))
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.method.parameters() if p.grad is not None])


def linear_kinds(module: torch.nn.Module) -> set[str]:
    return {type(part).__name__ for part in module.modules() if "Linear" in type(part).__name__}


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_in_the_lm_alone(folder: Path, kind: str) -> None:
    rows, model = samples(folder), model_of(folder, kind, "8bit")
    assert linear_kinds(model.blip.language_model) == {"Linear8bitLt", "Linear"}, "the head keeps its dtype"
    assert linear_kinds(model.blip.qformer) == linear_kinds(model.blip.language_projection) == {"Linear"}
    assert linear_kinds(model.encoders) == {"Linear"}
    gradient = learnt(model, rows)
    assert torch.cosine_similarity(gradient, learnt(model_of(folder, kind, None), rows), dim=0) > 0.99
    assert len(model.answer(rows)) == 2


def test_a_quantised_run_is_trained_and_comes_back(folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = blips.recipe(folder / "t5", folder / "data/train.jsonl", method="maple")
    given["lm"] = {"id": str(folder / "t5"), "quantization": "4bit"}
    perceptune.train(given, tmp_path / "run")
    rows = samples(folder)
    model = perceptune.load(tmp_path / "run")
    assert linear_kinds(cast(InstructBlipModel, model).blip.language_model) == {"Linear4bit", "Linear"}
    assert model.answer(rows) == perceptune.load(tmp_path / "run").answer(rows)


def test_what_is_quantised_cannot_be_trained(folder: Path) -> None:
    with pytest.raises(UserError, match="weights are trained in float32"):
        model_of(folder, "llama", "8bit", "llava")
