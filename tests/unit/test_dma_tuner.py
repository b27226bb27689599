"""DMA as PEFT's users meet it: a second tuner, offloaded models, dtypes, and the class of its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import NoMatchingPeftModuleError, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import LlamaForCausalLM

from peft_models import adapted, config, forward, model_of, move, output
from perceptune.errors import UserError
from perceptune.methods.dma import DMAConfig, DMALinear

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:You are trying to modify a model with PEFT for a second time",  # PEFT says so, and we do
    "ignore:Already found a `peft_config` attribute",
    "ignore:DMA's group",
    "ignore:Adapter default was active which is now deleted",
)


def trained(model: Any, case: str) -> dict[str, torch.Tensor]:
    """The parameters that a step of training moves, after it."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        forward(model, case).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize(
    "changes", [{}, {"r": 5}, {"core": "cp"}, {"target_modules": ["q_proj"]}, {"groups": {"low": r".*layers\.0\..*"}}]
)
def test_a_second_tuner_of_the_same_name_starts_anew_and_learns(changes: dict[str, Any], tmp_path: Path) -> None:
    base = model_of("opt")
    start = output(base, "opt")
    move(get_peft_model(base, config("opt")))
    model: Any = get_peft_model(base, config("opt", **changes)).eval()
    assert torch.equal(output(model, "opt"), start)
    moved = trained(model, "opt")
    assert set(moved) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("dma_" in name for name in moved)
    after = output(model, "opt")
    assert (after - start).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(model_of("opt"), str(tmp_path))
    assert torch.equal(output(again, "opt"), after)
    model.merge_adapter()
    assert (output(model, "opt") - after).abs().max() < 1e-5


def test_a_second_tuner_of_another_name_learns_beside_the_first() -> None:
    base = model_of("opt")
    first: Any = get_peft_model(base, config("opt")).eval()
    move(first)
    before = output(first, "opt")
    second: Any = get_peft_model(base, config("opt", r=2, target_modules=["q_proj", "fc1"]), "other").eval()
    moved = trained(second, "opt")
    assert len(moved) == len({name for name in moved if ".other" in name}) > 0
    other = output(second, "opt")
    second.set_adapter("default")
    assert torch.equal(output(second, "opt"), before)
    assert (other - before).abs().max() > 1e-4
    second.delete_adapter("default")
    assert not any(".default" in name for name in second.state_dict())
    second.set_adapter("other")
    assert torch.equal(output(second, "opt"), other)


def test_one_configuration_may_be_given_to_two_adapters() -> None:
    settings = config("opt")
    model: Any = get_peft_model(model_of("opt"), settings).eval()
    move(model)
    before = output(model, "opt")
    model.add_adapter("second", settings)
    assert torch.equal(output(model, "opt"), before)
    model.set_adapter("second")
    assert torch.equal(output(model, "opt"), output(model_of("opt"), "opt"))


def test_a_refused_second_tuner_leaves_the_first_as_it_is() -> None:
    base = model_of("opt")
    first: Any = get_peft_model(base, config("opt")).eval()
    move(first)
    before = output(first, "opt")
    with pytest.raises(ValueError, match="no module `q_prj`"):
        get_peft_model(base, config("opt", target_modules=["q_prj"]))
    assert torch.equal(output(first, "opt"), before)
    first.merge_adapter()
    with pytest.raises(ValueError, match=r"adapter `default` is merged .* `unmerge_adapter\(\)`"):
        get_peft_model(base, config("opt"))
    first.unmerge_adapter()
    assert torch.equal(output(first, "opt"), before)


def test_after_unload_a_model_takes_a_new_tuner() -> None:
    base = adapted("opt", moved=True).unload()
    model: Any = get_peft_model(base, config("opt", r=2)).eval()
    assert torch.equal(output(model, "opt"), output(model_of("opt"), "opt"))
    assert set(trained(model, "opt")) == {name for name, p in model.named_parameters() if p.requires_grad}


PLACES = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
          "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip


def offloaded(how: str, folder: Path) -> Any:
    """The Llama with its weights outside of it: in memory, or the last layer's on disk."""
    model = model_of("llama")
    if how == "cpu":
        return cpu_offload(model, execution_device=torch.device("cpu"))
    model.save_pretrained(folder / "base")
    return LlamaForCausalLM.from_pretrained(folder / "base", device_map=PLACES, offload_folder=folder / "off").eval()


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_models_are_trained_merged_and_saved(how: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"gamma": "diagonal", "r": 2}
    plain = adapted("llama", **options)
    model: Any = get_peft_model(offloaded(how, tmp_path), config("llama", **options)).eval()
    assert any(p.is_meta for p in model.parameters())
    assert not any(p.is_meta for p in model.parameters() if p.requires_grad)
    assert torch.equal(output(model, "llama"), output(plain, "llama"))
    move(model)
    move(plain)
    plain.load_state_dict(model.state_dict() | {n: t for n, t in plain.state_dict().items() if "dma_" not in n})
    expected = output(plain, "llama")
    assert (output(model, "llama") - expected).abs().max() < 1e-5
    forward(model, "llama").pow(2).mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(model_of("llama"), str(tmp_path / "adapter"))
    assert torch.equal(output(again, "llama"), expected)
    with torch.no_grad():
        assert (output(model.merge_and_unload(), "llama") - expected).abs().max() < 1e-5


def test_an_adapter_is_loaded_onto_an_offloaded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # PEFT writes its copy of offloaded weights below the working directory
    stored = adapted("llama", moved=True, gamma="scalar", gated=True)
    stored.save_pretrained(tmp_path / "adapter")
    places = {f"base_model.model.{name}": place for name, place in PLACES.items()}
    names = [name for name, _ in stored.base_model.named_children() if name != "model"]
    model: Any = PeftModel.from_pretrained(
        offloaded("disk", tmp_path), str(tmp_path / "adapter"), offload_folder=str(tmp_path / "off"),
        device_map=places | dict.fromkeys((f"base_model.{name}" for name in names), "cpu"),
    )  # fmt: skip
    assert (output(model, "llama") - output(stored, "llama")).abs().max() < 1e-5


def test_factors_of_a_model_that_is_only_shapes_are_shapes() -> None:
    with torch.device("meta"):
        model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), DMAConfig(r=2, target_modules=["0"], core="cp"))
    assert all(p.is_meta for p in model.parameters())


def test_casting_of_inputs_can_be_switched_off() -> None:
    """A float32 input of float16 factors then stays float32, as diffusers' casting by layers needs it."""
    base = nn.Sequential(nn.Linear(8, 8))
    model: Any = get_peft_model(base, DMAConfig(r=2, target_modules=["0"], core="cp")).eval()
    move(model)
    x = torch.randn(3, 8)
    expected = model(x)
    layer = next(module for module in model.modules() if isinstance(module, DMALinear))
    for container in (layer.dma_u, layer.dma_v, layer.dma_core, layer.dma_p):
        container.half()
    with disable_input_dtype_casting(model):
        assert layer.cast_input_dtype_enabled is False
        seen = layer._delta("default", x, layer.base_layer(x))
        assert seen.dtype == torch.float32
        assert (model(x) - expected).abs().max() < 1e-2
    assert layer.cast_input_dtype_enabled is True
    assert layer._delta("default", x, layer.base_layer(x)).dtype == torch.float16


@pytest.mark.parametrize("wrong", [{"r": 0}, {"core": "tuker"}, {"target_modules": "("}, {"groups": {"a.b": ".*"}}])
def test_errors_of_a_configuration_are_peft_users_and_ours(wrong: dict[str, Any]) -> None:
    for kind in (ValueError, UserError):
        with pytest.raises(kind, match="DMAConfig"):
            DMAConfig(**wrong)


def test_errors_of_a_model_are_peft_users_and_ours() -> None:
    for kind in (ValueError, UserError):
        for targets in (["q_prj"], ["embed_tokens"]):
            with pytest.raises(kind):
                get_peft_model(model_of("llama"), DMAConfig(r=2, target_modules=targets))
        with pytest.raises(kind, match="gated"):
            adapted("llama", gated=True).merge_and_unload()
    for targets in (["q_prj"], ".*q_prj"):  # what PEFT raises for it
        with pytest.raises(NoMatchingPeftModuleError):
            get_peft_model(model_of("llama"), DMAConfig(r=2, target_modules=targets))
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), DMAConfig(r=2))


def test_excluding_every_target_says_so() -> None:
    settings: dict[str, Any] = {"target_modules": ["q_proj"], "exclude_modules": r".*_proj"}
    words = r"exclude_modules: `\.\*_proj` leaves none of the 2 modules that `target_modules` names"
    with pytest.raises(NoMatchingPeftModuleError, match=words) as raised:
        get_peft_model(model_of("llama"), DMAConfig(r=2, **settings))
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("targets", [["v_proj"], r".*\.v_proj"])
def test_targets_are_what_pefts_table_says_now(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, "llama", targets)
    model: Any = get_peft_model(model_of("llama"), DMAConfig(r=2))
    assert model.targeted_module_names == [f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)]


def test_an_adapter_may_act_from_the_start() -> None:
    assert not torch.equal(output(adapted("opt", init_weights=False), "opt"), output(model_of("opt"), "opt"))
