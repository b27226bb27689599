"""A LoRA adapter's folder as the base LM: merged into its base, recorded with it, or refused with what to do."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

import perceptune
import support
from perceptune.config.schema import LMConfig
from perceptune.errors import UserError
from perceptune.models.run_folder import load, save_run
from perceptune.models.slots.build import load_lm, load_text
from perceptune.types import Sample

LORA = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.tensor([[5, 9, 30, 12, 7]])


def make(folder: Path, base: Path, config: Any = None, seed: int = 0, rows: int | None = None) -> Any:
    """An adapter whose every tensor matters, saved; returned as PEFT's own model."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of deprecated names, and of stored embeddings
        adapted = get_peft_model(model, config or LoraConfig(**LORA)).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        adapted.save_pretrained(folder)
    return adapted


def change(folder: Path, **entries: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, dwarfs: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    make(folder, dwarfs / "lm")
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "adapter")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"use_rslora": True, "r": 4}, {"modules_to_save": ["lm_head", "norm"]},
     {"target_modules": ["embed_tokens", "v_proj"]}, {"rank_pattern": {"q_proj": 3}, "bias": "all"}],
    ids=["plain", "dora", "rslora", "modules to save", "embedding", "ranks"],
)  # fmt: skip
def test_a_merged_adapter_gives_the_logits_of_peft(options: dict[str, Any], dwarfs: Path, tmp_path: Path) -> None:
    expected = logits(make(tmp_path / "lora", dwarfs / "lm", LoraConfig(**{**LORA, **options})))
    lm = load_lm(LMConfig(id=str(tmp_path / "lora")))
    torch.testing.assert_close(logits(lm.model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits(load_lm(LMConfig(id=str(dwarfs / "lm"))).model), atol=1e-2)
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    assert not any("lora" in name for name in lm.state_dict())


def test_an_adapter_with_a_longer_vocabulary_brings_its_rows(dwarfs: Path, tmp_path: Path) -> None:
    config = LoraConfig(**LORA)
    expected = logits(make(tmp_path / "lora", dwarfs / "lm", config, rows=support.SIZE + 3))
    support.tokenizer().save_pretrained(tmp_path / "lora")
    named = LMConfig(id=str(tmp_path / "lora"))
    assert expected.shape[-1] == support.SIZE + 3
    torch.testing.assert_close(logits(load_lm(named).model), expected, rtol=1e-4, atol=1e-4)
    assert load_lm(named, meta=True).model.get_input_embeddings().weight.shape[0] == support.SIZE + 3


def test_pickled_weights_are_taken_too(adapter: Path, saved: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    one, other = load_lm(LMConfig(id=str(adapter))), load_lm(LMConfig(id=str(saved)))
    assert torch.equal(logits(one.model), logits(other.model))
    assert one.fingerprint == other.fingerprint


def test_it_is_cast_after_merging(saved: Path) -> None:
    exact, rounded = load_lm(LMConfig(id=str(saved))), load_lm(LMConfig(id=str(saved)), dtype="bfloat16")
    assert rounded.dtype == torch.bfloat16
    assert rounded.fingerprint == exact.fingerprint
    names = dict(exact.model.named_parameters())
    assert all(torch.equal(names[name].bfloat16(), one) for name, one in rounded.model.named_parameters())
    kept = {name: one.dtype for name, one in exact.model.named_buffers()}
    assert {name: one.dtype for name, one in rounded.model.named_buffers()} == kept


def test_the_fingerprint_covers_base_and_adapter(adapter: Path, dwarfs: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path, **more: str) -> str:
        return load_lm(LMConfig(id=str(folder), **more)).fingerprint

    other = tmp_path / "other"
    make(other, dwarfs / "lm", seed=1)
    base = shutil.copytree(dwarfs / "lm", tmp_path / "base")
    found = {fingerprint(adapter), fingerprint(dwarfs / "lm"), fingerprint(other)}
    assert fingerprint(adapter, base=str(base)) in found
    changed = AutoModelForCausalLM.from_pretrained(base)
    changed.model.layers[0].mlp.up_proj.weight.data += 1
    changed.save_pretrained(base)
    found |= {fingerprint(adapter, base=str(base)), fingerprint(change(adapter, lora_alpha=9))}
    assert len(found) == 5


@pytest.mark.parametrize(("own", "expected"), [(True, "<own>"), (False, "</s>")])
def test_the_adapters_own_tokenizer_comes_first(own: bool, expected: str, adapter: Path, dwarfs: Path) -> None:
    if own:
        tokenizer = support.tokenizer()
        tokenizer.add_special_tokens({"eos_token": "<own>"})
        tokenizer.save_pretrained(adapter)
    recipe = perceptune.load_recipe(support.recipe(adapter, dwarfs / "encoder"))
    assert load_text(recipe, load_lm(recipe.lm, meta=True)).tokenizer.eos_token == expected


def test_a_run_on_an_adapter_is_trained_and_loaded_again(adapter: Path, dwarfs: Path, tmp_path: Path) -> None:
    recipe = support.recipe(
        adapter, dwarfs / "encoder", dwarfs / "data/train.jsonl", train=support.train_section(steps=2)
    )
    run = perceptune.train(recipe, tmp_path / "run").run
    sample = Sample("one", {"image": dwarfs / "data/train0.png"}, "color?")
    model = load(run)
    assert model.answer([sample]) == load(run, overrides=[f"lm.base={dwarfs / 'lm'}"]).answer([sample])
    assert json.loads((run / "meta.json").read_text())["base"]["lm"]["fingerprint"] == model.fingerprint
    make(adapter, dwarfs / "lm", seed=1)
    with pytest.raises(UserError, match="was trained on another base model: lm"):
        load(run)


def without_base(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(change(folder, base_model_name_or_path="")))


def far_base(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(change(folder, base_model_name_or_path="./models/gone")))


def hub_base(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(change(folder, base_model_name_or_path="someone/some-lm")))


def other_base(folder: Path, dwarfs: Path) -> LMConfig:
    return LMConfig(id=str(folder), base=str(dwarfs / "opt"))


def not_an_adapter(_: Path, dwarfs: Path) -> LMConfig:
    return LMConfig(id=str(dwarfs / "lm"), base=str(dwarfs / "opt"))


def on_an_adapter(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(folder), base=str(folder))


def without_weights(folder: Path, _: Path) -> LMConfig:
    (folder / "adapter_model.safetensors").unlink()
    return LMConfig(id=str(folder))


def in_bits(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(folder), quantization="8bit")


def classifier(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(change(folder, task_type="SEQ_CLS")))


def unknown_part(folder: Path, _: Path) -> LMConfig:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({**tensors, "base_model.model.score.weight": torch.ones(2, 32)}, folder / "adapter_model.safetensors")
    return LMConfig(id=str(change(folder, modules_to_save=["score"])))


def more_layers(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(change(folder, target_modules=["q_proj", "v_proj", "down_proj"])))


def other_rank(folder: Path, _: Path) -> LMConfig:
    return LMConfig(id=str(change(folder, r=3)))


def ia3(folder: Path, dwarfs: Path) -> LMConfig:
    shutil.rmtree(folder)
    make(folder, dwarfs / "lm", IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
    return LMConfig(id=str(folder))


def prompt(folder: Path, dwarfs: Path) -> LMConfig:
    shutil.rmtree(folder)
    make(folder, dwarfs / "lm", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    return LMConfig(id=str(folder))


REFUSED: dict[Callable[[Path, Path], LMConfig], str] = {
    without_base: r"names no base: set `lm\.base`",
    far_base: r"its base: no model folder or file `\./models/gone`.*set `lm\.base`",
    hub_base: r"its base `someone/some-lm` \(`lm\.base` names another\)",
    other_base: r"does not fit its base: it lacks `model\.decoder\.layers\.0.*; set `lm\.base`",
    not_an_adapter: r"lm\.base: .* is not an adapter",
    on_an_adapter: r"its base: .* is an adapter, too: merge it",
    without_weights: r"has no weights \(adapter_model\.safetensors or adapter_model\.bin\)",
    in_bits: r"lm\.quantization: .* is an adapter, which is merged in float32; save it",
    classifier: r"for the task SEQ_CLS: name an adapter of a causal LM",
    unknown_part: r"does not fit its base: it has \(2, 32\) for `score\.weight`",
    more_layers: r"does not fit its base: it lacks `model\.layers\.0\.self_attn\.v_proj\.lora_A\.weight`",
    other_rank: r"does not fit its base: it has \(2, \d+\) for `model.*lora_A\.weight`",
    ia3: r"an adapter \(IA3\) of .*, and only LoRA is merged here: merge it into its base by",
    prompt: r"an adapter \(PROMPT_TUNING\) of .*, which has no weights to merge: name its base",
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_merged_says_what_it_is(
    case: Callable[[Path, Path], LMConfig], adapter: Path, dwarfs: Path
) -> None:
    with pytest.raises(UserError, match=REFUSED[case]) as caught:
        load_lm(case(adapter, dwarfs))
    assert "\n" not in str(caught.value)


def test_a_run_says_which_base_it_needs(adapter: Path, dwarfs: Path, tmp_path: Path) -> None:
    base = shutil.copytree(dwarfs / "lm", tmp_path / "base")
    model = perceptune.build(support.recipe(change(adapter, base_model_name_or_path=str(base)), dwarfs / "encoder"))
    save_run(tmp_path / "run", model)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"its base: no model folder .*set `lm\.base`"):
        load(tmp_path / "run")
    load(tmp_path / "run", overrides=[f"lm.base={dwarfs / 'lm'}"])
