"""Every method on every LM family through a real run folder: saved, loaded, the same answers and the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import perceptune
import support
from perceptune.data.build_task import make_task
from perceptune.models.run_folder import METHOD, save_run
from rows import FAMILIES, method_names, method_section


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", method_names())
def test_a_saved_method_answers_the_same_when_loaded(name: str, family: str, models: Path, tmp_path: Path) -> None:
    data = models / "data/train.jsonl"
    given = support.recipe(models / family, models / "encoder", data, method=method_section(name))
    model = perceptune.build(given)
    samples = list(make_task(model.recipe).samples("train"))
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.fit_statistics(samples)
    save_run(tmp_path / "run", model)
    again = perceptune.load(tmp_path / "run")
    assert again.answer(samples) == model.answer(samples)
    assert torch.equal(again(again.collate(samples)), model(model.collate(samples)))
    save_run(tmp_path / "second", again)
    assert (tmp_path / "second" / METHOD).read_bytes() == (tmp_path / "run" / METHOD).read_bytes()
    untrained = perceptune.build(given)
    moved = untrained(untrained.collate(samples)) - model(model.collate(samples))
    assert moved.abs().max() > 1e-2, "what was saved matters"
