"""Averages of weights: what they are, that they go on where they stopped, and that training does not notice them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import perceptune
import support
from perceptune.errors import UserError
from perceptune.models.run_folder import METHOD
from perceptune.training.averaging import WeightAverage
from perceptune.training.optimizer import MethodOptimizer
from perceptune.training.validation import Validator
from runs import recipe, same, stop_after, tensors


def literal(values: list[Tensor], decay: float) -> Tensor:
    """The sum of decay ** age times each step's value, by the sum of these weights."""
    weights = [decay ** (len(values) - 1 - step) for step in range(len(values))]
    return sum(w * value.double() for w, value in zip(weights, values, strict=True)) / sum(weights)  # type: ignore[return-value]


@pytest.mark.parametrize("decay", [1e-6, 0.5, 0.99, 0.9999])
def test_it_is_the_normalised_sum(decay: float) -> None:
    weight = nn.Parameter(torch.full((3,), 1000.0))
    average, seen = WeightAverage({"weight": weight}, decay), list[Tensor]()
    with average.applied():
        assert weight.tolist() == [1000.0] * 3, "no step yet"
    for step in range(40):
        weight.data.copy_(torch.randn(3, generator=torch.Generator().manual_seed(step)))
        seen.append(weight.detach().clone())
        average.update(step)
        with average.applied():
            torch.testing.assert_close(weight.detach(), literal(seen, decay).float(), rtol=1e-5, atol=1e-6)
        assert torch.equal(weight.detach(), seen[-1]), "its own value comes back"


def test_the_first_average_is_the_first_step_and_an_error_inside_restores() -> None:
    weight = nn.Parameter(torch.tensor([1 / 3]))
    average = WeightAverage({"weight": weight}, 0.9)
    average.update(0)
    weight.data.fill_(0.1)
    seen: list[float] = []

    def fail() -> None:
        with average.applied():
            seen.append(weight.item())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [pytest.approx(1 / 3)]
    assert weight.item() == pytest.approx(0.1)
    average.clear()
    assert average.state_dict() == {}


def _trained(given: dict[str, Any], run: Path, patch: pytest.MonkeyPatch) -> tuple[list[dict[str, Tensor]], list[Any]]:
    """The trained parameters after each step, and the method's tensors in each validation."""
    after: list[dict[str, Tensor]] = []
    judged: list[Any] = []
    step, validate = MethodOptimizer.step, Validator.validate

    def recorded(self: MethodOptimizer, number: int) -> None:
        step(self, number)
        after.append({name: p.detach().clone() for group in self.groups for name, p in group["named"]})

    def validated(self: Validator, number: int) -> Any:
        judged.append({name: value.clone() for name, value in self.model.method.state_dict().items()})
        return validate(self, number)

    patch.setattr(MethodOptimizer, "step", recorded)
    patch.setattr(Validator, "validate", validated)
    perceptune.train(given, run)
    patch.undo()
    return after, judged


def test_a_run_answers_with_the_average(dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validated, saved and named; resumed with the same bits; the training itself has those of one without."""
    train = support.train_section(accumulate=2, freeze=["prompt"])
    given = recipe(dwarfs, train={**train, "ema": 0.8}, eval={"every": 3, "during_samples": 4})
    after, judged = _trained(given, tmp_path / "run", monkeypatch)
    saved, averaged = tensors(tmp_path / "run"), literal
    best = {name: averaged([row[name] for row in after], 0.8).float() for name in after[0]}
    meta = json.loads((tmp_path / "run/meta.json").read_text())
    assert meta["ema"] == 0.8
    assert len(judged) == 2
    for name, value in best.items():
        torch.testing.assert_close(judged[1][name], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(judged[1][name], after[-1][name])
    assert any(all(torch.equal(saved[name], one[name]) for name in saved) for one in judged)
    assert {name for name in saved if name not in best} == {
        name for name in judged[0] if torch.equal(judged[0][name], judged[1][name])
    }, "frozen parts and statistics are no average"

    stop_after(given, tmp_path / "parts", steps=3)
    perceptune.train(None, tmp_path / "parts", resume=True)
    assert same(tmp_path / "run", tmp_path / "parts")

    plain = recipe(dwarfs, train=train, eval=given["eval"])
    perceptune.train(plain, tmp_path / "plain")
    last = f"checkpoints/step-00000006/{METHOD}"
    assert (tmp_path / "plain" / last).read_bytes() == (tmp_path / "run" / last).read_bytes()
    assert "ema" not in json.loads((tmp_path / "plain/meta.json").read_text())
    perceptune.evaluate(tmp_path / "run", samples=2)
    assert json.loads((tmp_path / "run/results.json").read_text())["ema"] == 0.8


@pytest.mark.parametrize("ema", [0, 1, 1.5, -0.1, "all"])
def test_a_decay_is_between_0_and_1(dwarfs: Path, ema: Any) -> None:
    with pytest.raises(UserError, match=r"train\.ema"):
        perceptune.load_recipe(recipe(dwarfs, train={"ema": ema}))
