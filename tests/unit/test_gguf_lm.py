"""A GGUF file as the base LM: the same weights and tokens as from a folder, or what is wrong with it."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import perceptune
import support
from perceptune.config.schema import EncoderConfig, LMConfig
from perceptune.errors import UserError
from perceptune.models.gguf_files import save_gguf
from perceptune.models.run_folder import load
from perceptune.models.slots.build import load_encoder_of, load_lm, load_text
from perceptune.types import Sample
from perceptune.utils import downloads

BYTES = sorted(ByteLevel.alphabet())
TOKENS = ["<s>", "</s>", *BYTES, "Ġb", "ed", "<|endoftext|>"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.tensor([[5, 9, 30, 12, 7]])
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENS), intermediate_size=48, **SHAPE)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write(file: Path, rule: str = "smollm", *, bos: bool = False) -> Path:
    """The original as llama.cpp stores it: other names, rows of queries and keys in pairs of a rotation."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(4)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 3) + [3])
    writer.add_token_merges(["Ġ b", "e d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(bos)
    for name, tensor in original().state_dict().items():
        array = tensor.numpy().astype(np.float32)
        heads = 4 if "q_proj" in name else 2
        if "q_proj" in name or "k_proj" in name:
            array = array.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(-1, 32)
        for own, other in NAMES.items():
            name = name.replace(own, other)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@torch.no_grad()
def test_it_is_the_lm_that_was_converted(file: Path, tmp_path: Path) -> None:
    lm = load_lm(LMConfig(id=str(file)))
    found = lm.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in original().state_dict().items())
    torch.testing.assert_close(lm.model(input_ids=IDS).logits, original()(input_ids=IDS).logits)
    assert not hasattr(lm.model.config, "quantization_config")
    save_gguf(file, tmp_path)
    converted = load_lm(LMConfig(id=str(tmp_path)))
    assert torch.equal(converted.model(input_ids=IDS).logits, lm.model(input_ids=IDS).logits)
    assert converted.fingerprint == lm.fingerprint == load_lm(LMConfig(id=str(file)), dtype="bfloat16").fingerprint
    meta = load_lm(LMConfig(id=str(file.parent)), meta=True).model
    assert {name: tensor.shape for name, tensor in meta.state_dict().items()} == {k: v.shape for k, v in found.items()}


def text(file: Path, dwarfs: Path) -> list[str]:
    recipe = perceptune.load_recipe(support.recipe(file, dwarfs / "encoder"))
    tokenizer = load_text(recipe, load_lm(recipe.lm, meta=True)).tokenizer
    return tokenizer.tokenize("a bed  12")


def test_its_tokenizer_cuts_as_the_file_says(file: Path, dwarfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert text(file, dwarfs) == ["a", "Ġb", "ed", "Ġ", "Ġ", "1", "2"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("bos", [False, True])
def test_texts_begin_with_its_start_token_if_it_says_so(tmp_path: Path, dwarfs: Path, bos: bool) -> None:
    """As Gemma's do, whose texts are nearly twice as hard to predict without; also after it became a folder."""
    sample = Sample("one", {}, "a bed?", ("red",))
    begins = []
    file = write(tmp_path / "tiny.gguf", bos=bos)
    save_gguf(file, tmp_path / "lm")
    for place in (file, tmp_path / "lm"):
        for template in ("Question: {prompt} Answer:", "<s>A photo of"):
            recipe = perceptune.load_recipe(
                {**support.recipe(place, dwarfs / "encoder"), "text": {"template": template}}
            )
            form = load_text(recipe, load_lm(recipe.lm, meta=True))
            prompt, (learned, _) = form.prompt_ids(sample), form.training_ids(sample, "red")
            assert learned[: len(prompt)] == prompt
            begins.append(prompt[:2].count(0))
    assert begins == [int(bos), 1] * 2  # once, also where the template has it


@pytest.mark.assets
@pytest.mark.skipif(downloads.present("gemma-3-270m") is None, reason="gemma-3-270m is not fetched")
def test_texts_for_gemma_begin_with_its_start_token(dwarfs: Path) -> None:
    recipe = perceptune.load_recipe(support.recipe("gemma-3-270m", dwarfs / "encoder"))
    form = load_text(recipe, load_lm(recipe.lm, meta=True))
    sample = Sample("one", {}, "a bed?", ("red",))
    for ids in (form.prompt_ids(sample), form.training_ids(sample, "red")[0]):
        assert form.token(ids[0]) == "<bos>"
        assert ids.count(ids[0]) == 1


def test_an_unknown_rule_is_noted(tmp_path: Path, dwarfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = write(tmp_path / "odd.gguf", "some-new-rule")
    text(odd, dwarfs)
    assert "odd.gguf cuts text by the rule `some-new-rule`" in capsys.readouterr().err
    support.tokenizer().save_pretrained(tmp_path)  # one beside the file comes first
    assert text(odd, dwarfs)[:3] == ["a", " ", "b"]
    assert not capsys.readouterr().err


def test_a_run_on_it_is_trained_and_loaded_again(file: Path, dwarfs: Path, tmp_path: Path) -> None:
    section = support.train_section(steps=2)
    recipe = support.recipe(file, dwarfs / "encoder", dwarfs / "data/train.jsonl", train=section)
    run = perceptune.train(recipe, tmp_path / "run").run
    sample = Sample("one", {"image": dwarfs / "data/train0.png"}, "color?")
    save_gguf(file, tmp_path / "lm")
    assert load(run).answer([sample]) == load(run, overrides=[f"lm.id={tmp_path / 'lm'}"]).answer([sample])


@torch.no_grad()
def test_an_adapter_may_have_it_as_its_base(file: Path, tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore"):  # PEFT asks for a deprecated name
        adapted = get_peft_model(original(), config).eval()
    adapted.save_pretrained(tmp_path)
    lm = load_lm(LMConfig(id=str(tmp_path), base=str(file)))
    torch.testing.assert_close(lm.model(input_ids=IDS).logits, adapted(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_several_in_a_folder_are_listed(file: Path, tmp_path: Path) -> None:
    for name in ("a.Q4.gguf", "b.Q8.gguf", "mmproj-b.gguf"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(UserError, match=r"holds 2 GGUF files: name one of a\.Q4\.gguf, b\.Q8\.gguf$"):
        load_lm(LMConfig(id=str(tmp_path)))


def test_weights_of_transformers_beside_it_come_first(file: Path, tmp_path: Path) -> None:
    original().save_pretrained(tmp_path)
    shutil.copy(file, tmp_path / "tiny.gguf")
    assert torch.equal(load_lm(LMConfig(id=str(tmp_path))).model.lm_head.weight, original().lm_head.weight)
    assert AutoModelForCausalLM.from_pretrained(tmp_path) is not None


@pytest.mark.parametrize(
    ("name", "kept", "said"),
    [
        ("part-00001-of-00003.gguf", 1.0, r"split into several GGUF files: join them"),
        ("cut.gguf", 0.6, r"cut\.gguf` (is damaged or cut off|cannot be loaded)"),
        ("head.gguf", 0.01, r"head\.gguf` is damaged or cut off .*download it again"),
        ("other.gguf", 0.0, r"other\.gguf is not a GGUF file"),
    ],
)
def test_what_is_no_whole_file_says_so(name: str, kept: float, said: str, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * kept)] or b"<html>")
    with pytest.raises(UserError, match=said) as caught:
        load_lm(LMConfig(id=str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_it_needs_its_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'which the package gguf reads: pip install "perceptune\[assets\]"'):
        load_lm(LMConfig(id=str(file)))


def test_it_is_no_encoder_and_not_quantized_again(file: Path) -> None:
    with pytest.raises(UserError, match=r"is a GGUF file"):
        load_encoder_of("image", EncoderConfig(id=str(file)))
    with pytest.raises(UserError, match=r"lm\.quantization: .* is a GGUF file, which is unpacked"):
        load_lm(LMConfig(id=str(file), quantization="4bit"))
