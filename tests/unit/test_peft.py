"""What DMA refuses and warns of, quantised models, and PEFT's versions."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from peft_models import SPECIAL, adapted, model_of, move, output
from perceptune.errors import UserError
from perceptune.methods.dma import DMAConfig, DMALinear
from perceptune.methods.dma._types import require_tested_peft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
needs_bits = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes not installed")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 0}, "`r` is a rank, a whole number greater than 0, not 0"),
        ({"r": 2.5}, "`r` is a rank"),
        ({"core": "tuker"}, "`core` cannot be `tuker`; did you mean `tucker`"),
        ({"gamma": "diag"}, "`gamma` cannot be `diag`; did you mean `diagonal`"),
        ({"dropout": 1.0}, "`dropout` is a probability below 1, not 1.0"),
        ({"target_modules": "(q_proj"}, r"`target_modules` is no regular expression: `\(q_proj`"),
        ({"exclude_modules": "("}, "`exclude_modules` is no regular expression"),
        ({"groups": {"a.b": ".*"}}, "the group `a.b` becomes part of a name"),
        ({"groups": {"text": "["}}, r"`groups.text` is no regular expression"),
        ({"target_modules": ".*", "layers_to_transform": 0}, "`layers_to_transform` goes with a list"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DMAConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ["q_prj"]}, "the model has no module `q_prj`; did you mean `q_proj`"),
        ({"target_modules": ["q_proj", "nothing"]}, "no module `nothing`; choose from .*`q_proj`"),
        ({"target_modules": r".*self_atn\.q_proj"}, r"names no module of the model; did you mean `.*q_proj`"),
        ({"target_modules": ["q_proj"], "exclude_modules": ".*"}, "leaves none of the 2 modules"),
        ({"target_modules": ["embed_tokens"]}, "`model.embed_tokens` is an Embedding: DMA goes on nn.Linear"),
        ({"target_modules": ["self_attn"]}, "`model.layers.0.self_attn` is a LlamaAttention: DMA goes on"),
        (
            {"target_modules": ["q_proj"], "groups": {"image": "vision.*"}},
            "groups.image: `vision.*` names none of the 2",
        ),
    ],
)
def test_targets_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    model = model_of("llama")
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match=words):
        get_peft_model(model, DMAConfig(r=2, **settings))
    assert [name for name, _ in model.named_modules()] == names  # nothing was put on it


def test_a_model_of_an_unknown_type_needs_targets() -> None:
    with pytest.raises(UserError, match=r"specify `target_modules` for a model of type `custom`"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), DMAConfig(r=2))


def test_a_weight_that_is_never_called_is_refused() -> None:
    model = nn.Module()
    model.attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(UserError, match=r"`attention.out_proj` is part of torch's MultiheadAttention"):
        get_peft_model(model, DMAConfig(r=2, target_modules=["out_proj"]))


def test_a_refused_second_adapter_leaves_the_first_as_it_is() -> None:
    model = adapted("llama", moved=True)
    before = output(model, "llama")
    for settings, words in (
        ({"target_modules": ["embed_tokens"]}, "Embedding"),
        ({"target_modules": "all-linear", "groups": {"a": ".*"}}, "`groups` are .* but adapter `default` has None"),
    ):
        with pytest.raises(UserError, match=words):
            model.add_adapter("second", DMAConfig(r=2, **settings))
    assert torch.equal(output(model, "llama"), before)
    assert not any("second" in name for name in model.state_dict())


def test_groups_that_cost_more_than_they_save_are_warned_of(tmp_path: Path) -> None:
    """U and V 3 x 32, a mode vector of 3, and a core of 27 or 3 numbers, against LoRA's 3 x 32 a matrix."""
    one, two = (r".*layers\.0\.self_attn\.q_proj", r".*self_attn\.q_proj")
    for targets, core, words in (
        (one, "tucker", "16x16 has one matrix, which shares nothing: 126 parameters, LoRA of rank 3 would have 96"),
        (one, "cp", "16x16 has one matrix, which shares nothing: 102 parameters"),
    ):
        with pytest.warns(UserWarning, match=words):
            model: Any = get_peft_model(model_of("llama"), DMAConfig(r=3, target_modules=targets, core=core))
        model.save_pretrained(tmp_path)
        PeftModel.from_pretrained(model_of("llama"), str(tmp_path))  # trained already: too late for advice
    get_peft_model(model_of("llama"), DMAConfig(r=3, target_modules=two))
    with pytest.warns(UserWarning, match=r'2 matrices: 784 parameters, .* 512; .* `core="cp"` or LoRA'):
        get_peft_model(model_of("llama"), DMAConfig(r=8, target_modules=two))


def test_what_cannot_be_merged_says_why_and_changes_nothing() -> None:
    model = adapted("llama", gated=True, moved=True)
    before = output(model, "llama")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match=r"cannot be merged into `model.layers.0.*`: adapter `default` is gated"):
            merge()
    assert torch.equal(output(model, "llama"), before)
    broken = adapted("llama", moved=True)
    with torch.no_grad():
        broken.base_model.model.model.layers[1].self_attn.q_proj.dma_p["default"][0] = torch.inf
    with pytest.raises(
        UserError, match=r"NaNs detected in the merged weights\. The adapter default seems to be broken"
    ):
        broken.merge_and_unload(safe_merge=True)


def test_a_tied_weight_is_not_merged_into() -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32, tie_word_embeddings=True, **SPECIAL)  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="DMA's group|Model has .tie_word_embeddings")
        model: Any = get_peft_model(LlamaForCausalLM(config), DMAConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(UserError, match=r"into `lm_head`: its weight is `model.embed_tokens`'s, too"):
        model.merge_adapter()


def test_another_peft_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tested_peft()
    for version in ("0.20.9", "0.22.0", "1.0.0.dev0"):
        monkeypatch.setattr(metadata, "version", lambda _, version=version: version)
        with pytest.raises(UserError, match=rf"needs peft>=0.21,<0.22, but {version} is installed: pip install"):
            require_tested_peft()


def test_importing_it_loads_nothing_else_of_the_library_and_makes_it_known() -> None:
    code = (
        "import sys, perceptune.methods.dma, peft; "
        "names = [m for m in sys.modules if m.startswith('perceptune') and not m.startswith('perceptune.models')]; "
        "print(sorted(names), peft.PeftType('DMA').value, "  # the models register when transformers is imported
        "peft.PeftType.DMA in list(peft.PeftType))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    inside = [
        "_combination",
        "_errors",
        "_mixed_batches",
        "_offloading",
        "_targets",
        "_types",
        "config",
        "layer",
        "model",
    ]
    inside = ["_combination", "_errors", "_mixed_batches", "_offloading", "_targets", "_types"]
    inside += ["config", "layer", "model"]
    expected = ["perceptune", "perceptune._version", "perceptune.errors", "perceptune.methods"]
    expected += ["perceptune.methods.dma", *(f"perceptune.methods.dma.{name}" for name in inside), "perceptune.types"]
    assert out == f"{sorted(expected)} DMA True"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama as wide as a block of 4-bit weights."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=128, **SPECIAL)  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def quantised(folder: Path, bits: int) -> Any:
    settings = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(folder, quantization_config=settings, device_map={"": "cpu"})
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # would drop the gradient
            vars(module)["support_avx512bf16_for_cpu"] = False
    return model.eval()


@needs_bits
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_models_are_trained_saved_and_not_merged(bits: int, wide: Path, tmp_path: Path) -> None:
    plain = quantised(wide, bits)
    config = DMAConfig(r=3, dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj"], gamma="scalar")
    model: Any = get_peft_model(quantised(wide, bits), config).eval()
    layers = [module for module in model.modules() if isinstance(module, DMALinear)]
    assert len(layers) == 6
    assert all(layer.quantization_backend is not None for layer in layers)
    assert torch.equal(output(model, "llama"), output(plain, "llama"))
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    move(model)
    moved = output(model, "llama")
    assert (moved - output(plain, "llama")).abs().max() > 1e-3
    model(input_ids=torch.arange(3, 9)[None]).logits.pow(2).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    with pytest.raises(UserError, match=r"its weight is quantised.*merge there, then quantise"):
        model.merge_and_unload()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(quantised(wide, bits), str(tmp_path), is_trainable=True).eval()
    assert torch.equal(output(again, "llama"), moved)
    with model.disable_adapter():
        assert torch.equal(output(model, "llama"), output(plain, "llama"))
    whole = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(wide), str(tmp_path)).merge_and_unload()
    assert (output(whole, "llama") - moved).abs().mean() < 0.2 * moved.abs().mean()
