"""Weighted sums of DMA adapters: `add_weighted_adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from peft_models import adapted, config, model_of, move, output
from perceptune.methods.dma import DMALinear

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:DMA's group")
ADAPTERS, WEIGHTS = ["default", "second"], [0.5, -1.5]


def two_adapters(first: dict[str, Any], second: dict[str, Any]) -> Any:
    model = adapted("llama", moved=True, **first)
    model.add_adapter("second", config("llama", **second))
    model.set_adapter("second")
    move(model, seed=2)
    return model


def deltas(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    return {
        name: layer.get_delta_weight(adapter)
        for name, layer in model.named_modules()
        if isinstance(layer, DMALinear) and adapter in layer.dma_p
    }


def summed(model: Any) -> dict[str, torch.Tensor]:
    """The weighted sum of the adapters' deltas, map by map."""
    total: dict[str, torch.Tensor] = {}
    for adapter, weight in zip(ADAPTERS, WEIGHTS, strict=True):
        for name, delta in deltas(model, adapter).items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert set(one) == set(other)
    apart, size = (sum(t.pow(2).sum() for t in ts) for ts in ([one[n] - other[n] for n in one], one.values()))
    return float((apart / size).sqrt())


OTHERS = [
    ({}, {}),
    ({"core": "cp"}, {"core": "cp", "r": 2}),
    ({"r": 2}, {"core": "cp"}),
    ({"gamma": "scalar"}, {"gamma": "diagonal"}),
    ({"gamma": "scalar"}, {}),
    ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["v_proj", "up_proj"], "layers_to_transform": 1}),
    ({"rank_pattern": {"up_proj|gate_proj": 5}}, {}),
]


@pytest.mark.parametrize(("first", "second"), OTHERS)
def test_all_factors_side_by_side_are_the_exact_sum(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    model = two_adapters(first, second)
    expected = summed(model)
    model.add_weighted_adapter(ADAPTERS, WEIGHTS, "both", combination_type="cat")
    assert distance(expected, deltas(model, "both")) < 1e-5
    model.set_adapter("both")
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    again = PeftModel.from_pretrained(model_of("llama"), str(tmp_path / "both"))
    assert torch.equal(output(again, "llama"), output(model, "llama"))


def test_gated_adapters_are_summed_exactly() -> None:
    model = two_adapters({"gated": True}, {"core": "cp"})
    model.add_weighted_adapter(ADAPTERS, WEIGHTS, "both", combination_type="cat")
    for layer in (module for module in model.modules() if isinstance(module, DMALinear)):
        x = torch.randn(5, layer.in_features)
        frozen = layer.base_layer(x)
        expected = sum(weight * layer._delta(name, x, frozen) for name, weight in zip(ADAPTERS, WEIGHTS, strict=True))
        assert (layer._delta("both", x, frozen) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("first", "second"), OTHERS)
def test_a_decomposition_is_exact_with_all_directions_and_better_with_more(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    model = two_adapters(first, second)
    expected = summed(model)
    for rank in (1, 2, 4, 16):
        model.add_weighted_adapter(ADAPTERS, WEIGHTS, f"rank{rank}", svd_rank=rank)
    apart = [distance(expected, deltas(model, f"rank{rank}")) for rank in (1, 2, 4, 16)]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 0.02
    assert apart[-1] < 1e-4
    assert model.peft_config["rank16"].r == 16


def test_one_adapter_is_scaled_and_none_of_them_changes() -> None:
    model = two_adapters({}, {"r": 2})
    model.set_adapter("default")
    before, trainable = output(model, "llama"), {name for name, p in model.named_parameters() if p.requires_grad}
    model.add_weighted_adapter(["second"], [-2.0], "scaled")
    expected = {name: -2 * delta for name, delta in deltas(model, "second").items()}
    assert distance(expected, deltas(model, "scaled")) < 1e-5
    assert model.active_adapter == "default"
    assert torch.equal(output(model, "llama"), before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["default", "secnd"], WEIGHTS, "c"), "Adapter secnd does not exist; did you mean `second`"),
        ((ADAPTERS, WEIGHTS, "second"), "Adapter second exists already"),
        ((ADAPTERS, [1.0], "c"), "2 different adapters and 1 weights"),
        (([], [], "c"), "0 different adapters"),
        ((ADAPTERS, WEIGHTS, "c", "linear"), "cannot be `linear`, .*DMA's are shared; choose from `cat`, `svd`"),
        ((ADAPTERS, WEIGHTS, "c", "ties_svd"), "cannot be `ties_svd`"),
        ((ADAPTERS, WEIGHTS, "c", "svd"), "`second` is gated, no matrix to decompose: use `cat`"),
    ],
)
def test_sums_that_cannot_be(arguments: Any, words: str) -> None:
    model = two_adapters({}, {"gated": True})
    with pytest.raises(ValueError, match=words):
        model.add_weighted_adapter(*arguments)
    assert set(model.peft_config) == set(ADAPTERS)


def test_whole_modules_are_not_summed() -> None:
    model = two_adapters({"modules_to_save": ["lm_head"]}, {})
    with pytest.raises(ValueError, match="`default` has `modules_to_save`"):
        model.add_weighted_adapter(ADAPTERS, WEIGHTS, "c", "cat")
