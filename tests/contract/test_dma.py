"""What DMA must keep as a tuner of PEFT, on models of six families.

pytest tests/contract/test_dma.py
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional

from peft_models import CASES, R, adapted, config, forward, model_of, move, output
from perceptune.methods.dma import DMAConfig, DMALinear

pytestmark = pytest.mark.filterwarnings(
    # PEFT reads an attribute that transformers has renamed; ViT and BERT say nothing of who they are.
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    r"ignore:Adapter \w+ was active which is now deleted",
)
every_case = pytest.mark.parametrize("case", CASES)
every_core = pytest.mark.parametrize("core", ["tucker", "cp"])


def layers(model: Any) -> list[DMALinear]:
    return [module for module in model.modules() if isinstance(module, DMALinear)]


@every_case
@every_core
@pytest.mark.parametrize("options", [{}, {"gamma": "diagonal", "gated": True}])
def test_nothing_changes_at_the_start(case: str, core: str, options: dict[str, Any]) -> None:
    plain, model = model_of(case), adapted(case, core=core, **options)
    assert len(layers(model)) == CASES[case].matrices
    assert torch.equal(output(model, case), output(plain, case))
    move(model)
    assert (output(model, case) - output(plain, case)).abs().max() > 1e-3


@every_case
@every_core
@pytest.mark.parametrize("options", [{}, {"gamma": "scalar", "gated": True}])
def test_training_moves_every_parameter_of_it_and_not_one_frozen_bit(
    case: str, core: str, options: dict[str, Any]
) -> None:
    model = adapted(case, core=core, dropout=0.1, **options).train()
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert all("dma_" in name for name in trained)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        forward(model, case).pow(2).mean().backward()
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before) for name, before in frozen.items())
    assert [name for name, before in trained.items() if torch.equal(after[name], before)] == []


@every_case
@every_core
@pytest.mark.parametrize("gamma", [None, "scalar", "diagonal"])
def test_merged_is_unmerged_and_unmerging_restores_every_bit(case: str, core: str, gamma: str | None) -> None:
    model, plain = adapted(case, core=core, gamma=gamma, moved=True), model_of(case)
    expected = output(model, case)
    assert (expected - output(plain, case)).abs().max() > 1e-3
    model.merge_adapter(safe_merge=True)
    assert (output(model, case) - expected).abs().max() < 1e-5
    weights = {name: p for name, p in plain.named_parameters() if "dma_" not in name}
    merged = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert sum(not torch.equal(merged[name], p) for name, p in weights.items()) == CASES[case].matrices
    with model.disable_adapter():  # unmerges by itself
        assert torch.equal(output(model, case), output(plain, case))
    restored = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(restored[name], p) for name, p in weights.items())
    assert torch.equal(output(model, case), expected)
    bare = model.merge_and_unload()
    assert {name for name, _ in bare.named_modules()} == {name for name, _ in plain.named_modules()}
    assert (output(bare, case) - expected).abs().max() < 1e-5


@every_case
@every_core
def test_what_is_saved_is_the_adapter_alone_and_loads_to_the_same(case: str, core: str, tmp_path: Path) -> None:
    model = adapted(case, core=core, gamma="scalar", gated=True, moved=True)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    groups = {(layer.in_features, layer.out_features) for layer in layers(model)}
    assert len(stored) == 4 * len(groups) + 2 * CASES[case].matrices  # U, V, core, gate; p and gamma
    assert sum(tensor.numel() for tensor in stored.values()) == model.get_nb_trainable_parameters()[0]
    again = PeftModel.from_pretrained(model_of(case), str(tmp_path), is_trainable=True).eval()
    assert torch.equal(output(again, case), output(model, case))
    frozen = PeftModel.from_pretrained(model_of(case), str(tmp_path))
    assert not any(p.requires_grad for p in frozen.parameters())
    quick = PeftModel.from_pretrained(model_of(case), str(tmp_path), low_cpu_mem_usage=True, is_trainable=True).eval()
    assert (output(quick, case) - output(model, case)).abs().max() < 1e-5  # its tensors lie in memory as in the file
    state, own = get_peft_model_state_dict(quick), get_peft_model_state_dict(model)
    assert set(state) == set(own) == set(stored)
    assert all(torch.equal(state[name], own[name]) for name in own)
    assert quick.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    assert {p.data_ptr() for p in quick.parameters()} == {p.data_ptr() for p in quick.state_dict().values()}


@every_case
def test_several_adapters_are_switched_disabled_and_deleted(case: str, tmp_path: Path) -> None:
    plain, model = model_of(case), adapted(case, moved=True)
    first = output(model, case)
    model.save_pretrained(tmp_path)
    model.add_adapter("second", config(case, r=R - 1, core="cp"))
    assert torch.equal(output(model, case), first)
    model.set_adapter("second")
    assert torch.equal(output(model, case), output(plain, case))
    assert all((".second" in name) == p.requires_grad for name, p in model.named_parameters() if "dma_" in name)
    move(model, seed=2)
    second = output(model, case)
    assert (second - first).abs().max() > 1e-3
    model.load_adapter(str(tmp_path), "third")
    model.set_adapter("third")
    assert torch.equal(output(model, case), first)
    model.delete_adapter("third")
    model.base_model.set_adapter(["default", "second"])
    both = output(model, case)
    model.merge_adapter()
    assert (output(model, case) - both).abs().max() < 1e-5
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("second")
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(output(model, case), output(plain, case))
    model.set_adapter("second")
    model.delete_adapter("second")
    assert not any("second" in name or "third" in name for name in model.state_dict())
    assert torch.equal(output(model, case), first)


def test_adding_an_adapter_leaves_what_is_frozen_frozen(tmp_path: Path) -> None:
    adapted("bert", moved=True).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(model_of("bert"), str(tmp_path))
    model.add_adapter("second", config("bert"))
    assert not any(p.requires_grad for p in model.parameters())
    trained = adapted("bert")
    trained.load_adapter(str(tmp_path), "second", is_trainable=False)
    assert all((".default" in name) == p.requires_grad for name, p in trained.named_parameters() if "dma_" in name)


def delta_of(layer: DMALinear, x: torch.Tensor) -> torch.Tensor:
    return layer(x) - layer.base_layer(x)


def test_cp_is_the_papers_sum() -> None:
    """sum over r of lambda_r (u_r o v_r o p_r), contracted with a matrix' own p and applied to x."""
    for layer in layers(adapted("llama", core="cp", moved=True)):
        u, v, lam, p = (getattr(layer, f"dma_{one}")["default"] for one in ("u", "v", "core", "p"))
        x = torch.randn(5, layer.in_features)
        total = sum(lam[r] * p[r] * torch.outer(v[:, r], u[r]) for r in range(R))
        assert (delta_of(layer, x) - x @ total.T).abs().max() < 1e-6
        assert (layer.get_delta_weight("default") - total).abs().max() < 1e-6


def test_tucker_is_the_released_product_and_holds_cp() -> None:
    """M_ij = sum_k C_ijk p_k, y = V M^T U x; with lambda on the diagonal of C it is CP."""
    for layer in layers(adapted("llama", moved=True)):
        u, v, core, p = (getattr(layer, f"dma_{one}")["default"] for one in ("u", "v", "core", "p"))
        x = torch.randn(5, layer.in_features)
        expected = torch.einsum("oj,ijk,k,ix,bx->bo", v, core, p, u, x)
        assert (delta_of(layer, x) - expected).abs().max() < 1e-6
        with torch.no_grad():
            lam = torch.randn(R)
            core.zero_()
            core[range(R), range(R), range(R)] = lam
        assert (delta_of(layer, x) - x @ u.T @ torch.diag(lam * p) @ v.T).abs().max() < 1e-6


def test_gamma_scales_the_frozen_product_and_not_the_bias() -> None:
    for layer in layers(adapted("bert", gamma="diagonal", moved=True)):
        x, gamma = torch.randn(5, layer.in_features), layer.dma_gamma["default"]
        expected = gamma * functional.linear(x, layer.base_layer.weight) + layer.base_layer.bias
        with torch.no_grad():
            layer.dma_v["default"].zero_()
        assert (layer(x) - expected).abs().max() < 1e-6
    scalar = adapted("bert", gamma="scalar")
    assert all(layer.dma_gamma["default"].shape == (1,) for layer in layers(scalar))


def test_a_gate_weighs_lambda_by_the_input() -> None:
    for layer in layers(adapted("bert", core="cp", gated=True, moved=True)):
        u, v, lam, p, gate = (getattr(layer, f"dma_{one}")["default"] for one in ("u", "v", "core", "p", "gate"))
        x = torch.randn(5, layer.in_features)
        h = x @ u.T
        expected = (h * 2 * torch.sigmoid(h @ gate.T) * lam * p) @ v.T
        assert (delta_of(layer, x) - expected).abs().max() < 1e-6


def test_dropout_acts_between_u_and_the_core_while_training_only() -> None:
    layer = layers(adapted("bert", dropout=0.5, moved=True))[0]
    x = torch.randn(64, layer.in_features)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    u, v, core, p = (getattr(layer, f"dma_{one}")["default"] for one in ("u", "v", "core", "p"))
    h = torch.linalg.lstsq((v @ (core @ p).T), delta_of(layer, x).T).solution.T  # (64, r) after dropout
    kept = h.abs() > 1e-4
    assert 0.3 < kept.float().mean() < 0.7
    assert torch.allclose(h[kept], 2 * (x @ u.T)[kept], rtol=1e-2, atol=1e-3)


@every_case
def test_bfloat16_models_train_in_float32_beside_their_weights(case: str) -> None:
    plain = model_of(case).to(torch.bfloat16)
    model = get_peft_model(copy.deepcopy(plain), config(case)).eval()
    assert torch.equal(output(model, case), output(plain, case))
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    move(model)
    rough, exact = output(model, case).float(), output(adapted(case, moved=True), case)
    assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()
    model.merge_adapter()
    model.unmerge_adapter()
    restored = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(restored[name], p) for name, p in plain.named_parameters())


def test_copies_and_moves_keep_the_factors_shared() -> None:
    model = adapted("llama", moved=True)
    twin = copy.deepcopy(model).double()
    shared = {id(p) for name, p in twin.named_parameters() if "dma_u" in name}
    assert {id(layer.dma_u["default"]) for layer in layers(twin)} == shared
    assert not shared & {id(p) for p in model.parameters()}
    assert len(shared) == len({(layer.in_features, layer.out_features) for layer in layers(twin)})
    assert set(get_peft_model_state_dict(twin)) == set(get_peft_model_state_dict(model))


def test_groups_keep_modalities_of_one_width_apart() -> None:
    groups = {"low": r".*layers\.0\..*", "high": r".*layers\.1\..*"}
    model = adapted("opt", groups=groups, moved=True)
    containers = {name for name, _ in model.base_model.named_children() if name.startswith("dma_core_")}
    assert containers == {"dma_core_low_16x16", "dma_core_high_16x16"}
    low, high = (model.get_submodule(f"base_model.model.model.decoder.layers.{i}.self_attn.q_proj") for i in (0, 1))
    assert not torch.equal(low.dma_core["default"], high.dma_core["default"])


def test_it_becomes_a_lora_of_the_same_rank() -> None:
    model = adapted("opt", moved=True)
    expected = output(model, "opt")
    lora, state = peft.convert_to_lora(model, rank=R)
    assert lora.r == R
    plain = get_peft_model(model_of("opt"), lora)
    peft.set_peft_model_state_dict(plain, state)
    assert (output(plain.eval(), "opt") - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("core", "count"), [("tucker", 765_312), ("cp", 241_152)])
def test_counts_on_instructblips_q_former(core: str, count: int) -> None:
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    with torch.device("meta"):
        qformer = InstructBlipQFormerModel(InstructBlipQFormerConfig())
    model: Any = get_peft_model(qformer, DMAConfig(core=core))
    assert model.get_nb_trainable_parameters()[0] == count
    shapes = [(layer.in_features, layer.out_features) for layer in layers(model)]
    assert (shapes.count((768, 768)), shapes.count((1408, 768)), len(shapes)) == (42, 12, 54)
