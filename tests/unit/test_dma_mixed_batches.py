"""Batches in which each row has its own DMA adapter: `adapter_names` of PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from peft_models import CASES, adapted, config, forward, model_of, move, output
from perceptune.methods.dma import DMAConfig, DMALinear

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:DMA's group")
NAMES = ["__base__", "second", "default", "second", "default"]


def two_adapters(case: str, **changes: Any) -> Any:
    """A model with two adapters, both far from where they start, of different rank and core."""
    model = adapted(case, moved=True, **changes)
    model.add_adapter("second", config(case, r=2, core="cp", **changes))
    model.set_adapter("second")
    move(model, seed=2)
    return model


def rows(case: str, number: int) -> dict[str, Any]:
    """A batch of as many different rows."""
    generator = torch.Generator().manual_seed(3)
    if "pixel_values" in CASES[case].batch():
        return {"pixel_values": torch.randn(number, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(3, 60, (number, 6), generator=generator)}


def result(model: Any, **batch: Any) -> Tensor:
    with torch.no_grad():
        given = model(**batch)
    return given.logits if hasattr(given, "logits") else given.last_hidden_state


@pytest.mark.parametrize("case", ["llama", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("changes", [{}, {"gamma": "diagonal", "gated": True}])
def test_each_row_has_the_answer_of_its_adapter(case: str, changes: dict[str, Any]) -> None:
    model, batch = two_adapters(case, **changes), rows(case, len(NAMES))
    mixed = result(model, **batch, adapter_names=NAMES)
    single = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        single[name] = result(model, **batch)
    with model.disable_adapter():
        single["__base__"] = result(model, **batch)
        assert torch.equal(result(model, **batch, adapter_names=NAMES), single["__base__"])
    for row, name in enumerate(NAMES):
        assert (mixed[row] - single[name][row]).abs().max() < 1e-5
    assert (single["default"] - single["second"]).abs().amax((1, 2)).min() > 1e-3


def test_maps_that_one_of_the_adapters_does_not_have_are_left_to_the_frozen_model() -> None:
    model = adapted("llama", target_modules=["q_proj"], moved=True)
    model.add_adapter("second", DMAConfig(r=3, target_modules=["v_proj"]))
    model.set_adapter("second")
    move(model, seed=2)
    batch = rows("llama", 3)
    second = result(model, **batch)
    model.set_adapter("default")
    first = result(model, **batch)  # the new adapter is in evaluation mode as well
    mixed = result(model, **batch, adapter_names=["default", "second", "default"])
    assert (mixed[[0, 2]] - first[[0, 2]]).abs().max() < 1e-5
    assert (mixed[1] - second[1]).abs().max() < 1e-5


def test_modules_to_save_go_with_their_adapter() -> None:
    model = adapted("llama", target_modules=["q_proj"], modules_to_save=["lm_head"], moved=True)
    model.add_adapter("second", DMAConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    batch = rows("llama", 2)
    first = result(model, **batch)
    model.set_adapter("second")
    move(model, seed=2)
    second = result(model, **batch)
    mixed = result(model, **batch, adapter_names=["default", "second"])
    assert (mixed[0] - first[0]).abs().max() < 1e-5
    assert (mixed[1] - second[1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}],
)
def test_generation_gives_each_row_the_tokens_of_its_adapter(settings: dict[str, Any]) -> None:
    model, batch = two_adapters("llama"), rows("llama", len(NAMES))
    settings = {**settings, "max_new_tokens": 4, "min_new_tokens": 4, "top_k": 1, "attention_mask": torch.ones(5, 6)}
    mixed = model.generate(**batch, **settings, adapter_names=NAMES).view(len(NAMES), -1)
    single = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        single[name] = model.generate(**batch, **settings).view(len(NAMES), -1)
    with model.disable_adapter():
        single["__base__"] = model.generate(**batch, **settings).view(len(NAMES), -1)
    for row, name in enumerate(NAMES):
        assert torch.equal(mixed[row], single[name][row])
    assert not torch.equal(single["default"], single["second"])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_beams_of_an_encoder_and_decoder_keep_their_adapters() -> None:
    """The encoders run on the rows, InstructBLIP's language model on the beams."""
    model = two_adapters("instructblip", target_modules=r".*\.(query|key|value|q|v|qkv)")
    batch = CASES["instructblip"].batch()
    batch.pop("labels")
    settings = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    mixed = model.generate(**batch, **settings, adapter_names=["default", "second"])
    for row, name in enumerate(("default", "second")):
        model.set_adapter(name)
        assert torch.equal(mixed[row], model.generate(**batch, **settings)[row])


@pytest.mark.parametrize("tuner", ["dma", "lora"])  # PEFT's LoRA: the same errors
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["default"] * 4, r"Length of `adapter_names` should be the same as the number of inputs, but got 4 and 5"),
        (["default", "b", "a", "b", "__base__"], r"Trying to infer with non-existing adapter\(s\): a, b$"),
    ],
)
def test_names_that_cannot_be(tuner: str, names: list[str], words: str) -> None:
    chosen = config("opt") if tuner == "dma" else LoraConfig(target_modules=["q_proj"])
    model: Any = get_peft_model(model_of("opt"), chosen).eval()
    with pytest.raises(ValueError, match=words):
        model(**rows("opt", 5), adapter_names=names)
    if tuner == "dma":  # PEFT leaves its hooks there
        assert torch.equal(output(model, "opt"), forward(model, "opt"))
        assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("tuner", ["dma", "lora"])
def test_training_and_merged_models_take_no_names(tuner: str) -> None:
    chosen = config("opt") if tuner == "dma" else LoraConfig(target_modules=["q_proj"])
    model: Any = get_peft_model(model_of("opt"), chosen)
    batch = {**rows("opt", 2), "adapter_names": ["default"] * 2}
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when the model is in training mode"):
        model.train()(**batch)
    model.eval().merge_adapter()
    with pytest.raises(
        ValueError, match=r"Cannot pass `adapter_names` when there are merged adapters, please call `un"
    ):
        model(**batch)


def test_a_layer_of_its_own_takes_rows_of_vectors() -> None:
    """Not only (batch, positions, width): a linear map of (batch, width) too, without changing its input's result."""
    model: Any = get_peft_model(nn.Sequential(nn.Linear(6, 6)), DMAConfig(r=2, target_modules=["0"], core="cp")).eval()
    move(model)
    x = torch.randn(3, 6)
    layer = next(module for module in model.modules() if isinstance(module, DMALinear))
    mixed = model(x, adapter_names=["__base__", "default", "__base__"])
    assert torch.equal(mixed[::2], layer.base_layer(x)[::2])
    assert torch.allclose(mixed[1], layer(x)[1])
