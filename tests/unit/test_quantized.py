"""LMs in 8 and 4 bits: near the original, trained around, saved and loaded. Without bitsandbytes one clear error."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

import perceptune
import support
from perceptune.config.schema import LMConfig
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.base import count
from perceptune.models.slots.build import load_lm

needed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
every_width = pytest.mark.parametrize("bits", ["8bit", "4bit"])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `llama` and `opt` as wide as a block of 4-bit weights: 64 columns."""
    folder = tmp_path_factory.mktemp("wide")
    shape = {"vocab_size": support.SIZE, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    for name, config in (
        ("llama", LlamaConfig(**shape, num_key_value_heads=4, intermediate_size=128, **support.SPECIAL)),
        ("opt", OPTConfig(**shape, word_embed_proj_dim=64, ffn_dim=128, **support.SPECIAL)),
    ):
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        support.tokenizer(bos=name == "opt").save_pretrained(folder / name)
    return folder


def quantized(folder: Path, bits: Any = None) -> FrozenLM:
    return load_lm(LMConfig(id=str(folder), quantization=bits))


def test_without_bitsandbytes_one_line_says_what_to_install(dwarfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(UserError, match=r"lm.quantization `4bit` needs bitsandbytes.*perceptune\[quantized\]"):
        quantized(dwarfs / "lm", "4bit")


@needed
@every_width
def test_quantised_weights_are_smaller_and_say_nearly_the_same(bits: str, wide: Path) -> None:
    exact, rough = quantized(wide / "llama"), quantized(wide / "llama", bits)
    ids = torch.randint(4, support.SIZE, (2, 9))
    a, b = (lm.model.model.layers[0].mlp.up_proj for lm in (exact, rough))
    assert b.weight.nbytes <= a.weight.nbytes / (4 if bits == "8bit" else 8)
    x = torch.randn(5, a.in_features)
    error = (a(x) - b(x)).norm() / a(x).norm()
    assert 0 < error < (0.02 if bits == "8bit" else 0.15)
    assert torch.isfinite(rough(ids, torch.ones_like(ids))).all()
    assert rough.dtype == torch.float32
    assert rough.capabilities.split_disabled_reason is None
    assert count(rough) == count(exact)


@needed
@every_width
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_method_is_trained_around_quantised_weights(
    bits: str, family: str, wide: Path, dwarfs: Path, tmp_path: Path
) -> None:
    recipe = support.recipe(wide / family, dwarfs / "encoder", dwarfs / "data/train.jsonl")
    recipe["lm"] = {"id": str(wide / family), "quantization": bits}
    perceptune.train(recipe, tmp_path / "run")
    model, again = perceptune.load(tmp_path / "run"), perceptune.load(tmp_path / "run")
    samples = list(make_task(model.recipe).samples("train"))
    batch = model.collate(samples)
    assert torch.equal(model(batch), again(batch))
    untrained = perceptune.build(recipe)
    assert (untrained(untrained.collate(samples)) - model(batch)).abs().max() > 1e-3
    model.loss(batch)[0].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.method.parameters())
    assert all(p.grad is None for p in model.lm.parameters())
