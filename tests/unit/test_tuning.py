"""Trained scales of norms and linear maps in a frozen LM: they equal trained weights, and the frozen ones stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import perceptune
import runs as dwarf_runs
from perceptune.config.schema import LMConfig
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.kernels.optimize import optimize_frozen
from perceptune.lm.probe import probe
from perceptune.methods.base import count
from perceptune.methods.slots._output_scales import linear_scales, norm_scales
from perceptune.methods.slots.base import Injection, InjectionOptions
from perceptune.models.model_pool import Attachments
from perceptune.models.slots.build import load_lm
from rows import FAMILIES, FURTHER_FAMILIES, SHAPE, Row, row
from support import random_lm

LATE = {"n_levels": 1, "prompt": "none"}


def lm_of(family: str) -> FrozenLM:
    lm = FrozenLM(random_lm(family))
    if family in FURTHER_FAMILIES:
        lm.capabilities = probe(lm)
    return lm


def tuned(lm: FrozenLM, *, drawn: bool = True, **options: Any) -> Injection:
    """A late method with these options on an LM, its scales and biases far from 1 and 0."""
    torch.manual_seed(3)
    method = Injection(InjectionOptions(**LATE, **options), lm, {"image": SHAPE})
    with torch.no_grad():
        for parameter in method.tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 * drawn)
    method.attach(lm)
    return method


def logits(lm: FrozenLM) -> Tensor:
    torch.manual_seed(4)
    ids = torch.randint(4, 60, (2, 9))
    return lm(ids, torch.ones_like(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_start_not_one_bit_differs(family: str) -> None:
    plain, lm = lm_of(family), lm_of(family)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    tuned(lm, drawn=False, tune_norms="all", tune_biases="all")
    assert torch.equal(logits(lm), logits(plain))
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_lm_with_other_weights(family: str) -> None:
    """Written into a copy of the LM, they give its logits: norms in every family's form, maps with and without bias."""
    lm, other = lm_of(family), lm_of(family)
    assert (logits(other) - logits(lm)).abs().max() == 0
    method = tuned(lm, tune_norms="injected", tune_biases="injected")
    for kind in ("norms", "biases"):
        for key, own in method.tuned[kind].items():
            written_into(other.layers.get_submodule(key.replace("/", ".")), own)
    torch.testing.assert_close(logits(lm), logits(other), rtol=1e-4, atol=1e-4)
    assert (logits(lm) - logits(lm_of(family))).abs().max() > 1e-2


@torch.no_grad()
def written_into(module: Any, own: Any) -> None:
    """A module's weights times the scale, its bias times the scale and moved by the bias."""
    if type(module).__name__.startswith("Gemma"):  # its weight is added to 1
        module.weight.copy_((1 + module.weight) * own.scale - 1)
    elif isinstance(module, nn.Linear):
        module.weight.mul_(own.scale[:, None])
    else:  # a norm, or GPT-2's map, whose weight is transposed
        module.weight.mul_(own.scale)
    if own.bias is not None:
        before = 0 if module.bias is None else module.bias * own.scale
        module.bias = nn.Parameter(before + own.bias, requires_grad=False)


def test_norms_of_twelve_layers_have_so_many_numbers() -> None:
    size = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    with torch.device("meta"):
        smollm = FrozenLM(LlamaForCausalLM(LlamaConfig(**size, vocab_size=8, num_hidden_layers=30)))
        assert count(norm_scales(smollm, range(18, 30))) == 13_824
        assert count(norm_scales(load_lm(LMConfig(id="facebook/opt-6.7b"), meta=True), range(20, 32))) == 196_608


def test_all_maps_of_a_layer_are_scaled() -> None:
    """q, k, v, o, gate, up and down of a Llama: 4 heads and 2 of keys, 48 in the middle."""
    assert count(linear_scales(lm_of("llama"), [1])) == 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)


def test_a_fused_norm_is_scaled_and_a_trained_scale_does_not_keep_it_from_being_fused() -> None:
    """A loaded run is optimised with trained scales, a training with scales of 1: both have to compute the same."""
    results = []
    for optimized in (False, True):
        lm = lm_of("llama")
        method = tuned(lm, tune_norms="injected")
        if optimized:
            optimize_frozen(lm, method.first_layer, 64)
            norms = [part for layer in lm.layers for part in layer.modules() if type(part).__name__ == "LlamaRMSNorm"]
            assert len(norms) == 8
            assert all("forward" in vars(norm) for norm in norms)
        out = logits(lm)
        out.pow(2).mean().backward()
        results.append([out, *(p.grad for p in method.tuned.parameters())])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
        assert plain.abs().max() > 0


def test_methods_take_turns_on_one_lm() -> None:
    lm = lm_of("llama")
    bare, both = logits(lm), []
    for _ in range(2):
        places = Attachments(lm)
        method = tuned(lm, tune_norms="injected", tune_biases="injected")
        both.append((places, method, logits(lm)))
        places.take_off()
        assert torch.equal(logits(lm), bare)
        with torch.no_grad():
            for parameter in method.tuned.parameters():
                parameter.mul_(1 + len(both))
    for places, _, before in both:
        with places.on():
            assert (logits(lm) - before).abs().max() > 1e-3
    assert torch.equal(logits(lm), bare)


def test_text_states_stay_valid_below_the_first_injected_layer() -> None:
    for where, first in (("injected", 2), ("all", 0)):
        lm = lm_of("llama")
        method = tuned(lm, tune_norms=where)
        assert method.first_layer == first
        ids = torch.randint(4, 60, (2, 9))
        below = lm.hidden_states_at(first, ids, torch.ones_like(ids))
        whole = lm_of("llama").hidden_states_at(first, ids, torch.ones_like(ids))
        assert torch.equal(below, whole)


def test_they_are_trained_beside_peft_layers_at_the_prompts_rate() -> None:
    r: Row = row("lora@tuned", "llama")
    [group] = [group for group in r.method.param_groups() if group["name"] == "prompt"]
    names = {name for name, _ in group["named"]}
    assert "tuned.norms.0/input_layernorm.scale" in names
    assert "tuned.biases.2/self_attn/q_proj.bias" in names
    assert any(name.startswith("peft.") for name in names)


@pytest.mark.parametrize("key", ["tune_norms", "tune_biases"])
def test_an_unfrozen_lm_trains_them_already(key: str) -> None:
    with pytest.raises(ValueError, match=f"`unfreeze` trains all weights of the LM, so it does not go with `{key}`"):
        InjectionOptions(unfreeze=["lm"], **{key: "injected"})


def test_an_lm_without_scaled_norms_is_refused() -> None:
    lm = lm_of("llama")
    for layer in lm.layers:
        layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
    with pytest.raises(UserError, match=r"method.tune_norms: the blocks of LlamaForCausalLM have no norms"):
        tuned(lm, tune_norms="injected")


def test_a_training_moves_them_and_a_run_resumes_to_the_bit(dwarfs: Path, tmp_path: Path) -> None:
    method = {"name": "epalm-lin", "n_levels": 2, "tune_norms": "injected", "tune_biases": "injected"}
    given = dwarf_runs.recipe(dwarfs, method=method, train={"steps": 4})
    perceptune.train(given, tmp_path / "whole")
    dwarf_runs.stop_after(given, tmp_path / "stopped", 2)
    perceptune.train(run=tmp_path / "stopped", resume=True)
    whole, again = dwarf_runs.tensors(tmp_path / "whole"), dwarf_runs.tensors(tmp_path / "stopped")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    moved = {name for name, value in whole.items() if name.endswith(".scale") and not (value == 1).all()}
    assert len(moved) == 2 * (2 + 7)
