"""Models of another kind, quantised ones and broken downloads, named as LM or encoder: each says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import support
from perceptune.config.schema import EncoderConfig, LMConfig
from perceptune.errors import UserError
from perceptune.models.model_folders import tokenizer_advice
from perceptune.models.slots.build import load_encoder_of, load_lm

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
         "text_config": {"model_type": "llama", "_name_or_path": "lmsys/vicuna-7b-v1.5"},
         "vision_config": {"model_type": "clip_vision_model"}}  # fmt: skip
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "llava": (LLAVA, r"a vision-language model \(`llava`\).*name its text model `lmsys/vicuna-7b-v1\.5` \(a `llama`\)"),
    "qwen2_vl": ({"architectures": ["Qwen2VLForConditionalGeneration"]}, "a vision-language model"),
    "paligemma": ({}, r"a vision-language model .*\(a `gemma`\)"),
    "instructblip": ({}, "a vision-language model .*or set `backbone: instructblip`"),
    "t5": ({}, "an encoder-decoder .*decoder-only"),
    "bart": ({}, "an encoder-decoder"),
    "bert": ({"architectures": ["BertForMaskedLM"]}, "a masked LM or text encoder"),
    "modernbert": ({}, "a masked LM or text encoder"),
    "llama": ({"architectures": ["LlamaForSequenceClassification"]}, "a classifier or reward model"),
    "gpt2": ({"architectures": ["GPT2RewardModel"]}, "a classifier or reward model"),
    "vit": ({}, "of model type `vit`, for which transformers has no causal LM"),
}


def configured(folder: Path, **entries: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **entries}))
    return folder


@pytest.fixture
def lm(dwarfs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dwarfs / "lm", tmp_path / "lm")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_of_another_kind_says_what_it_is(kind: str, tmp_path: Path) -> None:
    entries, said = CONFIGS[kind]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **entries}))
    for meta in (True, False):
        with pytest.raises(UserError, match=f"^lm `{tmp_path}` is {said}") as caught:
            load_lm(LMConfig(id=str(tmp_path)), meta=meta)
        assert "\n" not in str(caught.value)


def test_a_vlm_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    said = r"a vision-language model \(`llava`\), not an encoder: .* inside it \(a `clip_vision_model`\)"
    with pytest.raises(UserError, match=said):
        load_encoder_of("image", EncoderConfig(id=str(tmp_path)), meta=True)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_quantised_checkpoint_says_what_to_name(method: str, lm: Path) -> None:
    configured(lm, quantization_config={"quant_method": method, "bits": 4, "group_size": 32})
    with pytest.raises(UserError, match=rf"is quantised \({method}\).*name the model it was made from.*8bit"):
        load_lm(LMConfig(id=str(lm)))


def pickled(lm: Path, more: dict[str, Any] | None = None, **options: Any) -> Path:
    tensors = load_file(lm / "model.safetensors")
    (lm / "model.safetensors").unlink()
    torch.save({**tensors, **(more or {})}, lm / "pytorch_model.bin", **options)
    return lm


def in_shards(lm: Path) -> Path:
    tensors = load_file(pickled_off(lm))
    places = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if places[name] == file}, lm / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (lm / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return lm


def pickled_off(lm: Path) -> Path:
    return (lm / "model.safetensors").rename(lm.parent / "kept.safetensors")


@pytest.mark.parametrize("make", [pickled, in_shards, lambda lm: pickled(lm, _use_new_zipfile_serialization=False)])
def test_pickled_tensors_are_read(make: Callable[[Path], Path], lm: Path, dwarfs: Path) -> None:
    assert load_lm(LMConfig(id=str(make(lm)))).fingerprint == load_lm(LMConfig(id=str(dwarfs / "lm"))).fingerprint


def cut(lm: Path, name: str = "model.safetensors") -> None:
    data = (lm / name).read_bytes()
    (lm / name).write_bytes(data[: len(data) // 2])


def without(lm: Path, *left: str) -> None:
    (lm / "model.safetensors").unlink()
    for name in left:
        (lm / name).parent.mkdir(exist_ok=True)
        (lm / name).write_text("{}")


def lose_a_shard(lm: Path) -> None:
    (in_shards(lm) / "pytorch_model-00002-of-00002.bin").unlink()


def lose_safetensors_shard(lm: Path) -> None:
    without(lm)
    support.random_lm("llama").save_pretrained(lm, max_shard_size="20kB")
    min(lm.glob("*.safetensors")).unlink()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda lm: pickled(lm, {"x": Path("a")}), r"a \.bin file holds more than tensors.*refused"),
    "cut bin": (lambda lm: cut(pickled(lm), "pytorch_model.bin"), r"a \.bin file is damaged or cut off"),
    "cut": (cut, r"model\.safetensors is damaged or cut off after [\d,]+ bytes: download it again"),
    "empty": (lambda lm: (lm / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged or cut off"),
    "html": (lambda lm: (lm / "model.safetensors").write_text("<html>" * 9), r"model\.safetensors is damaged"),
    "none": (without, r"has a config\.json, but no weights \(model\.safetensors or pytorch_model\.bin\)"),
    "unfinished": (lambda lm: without(lm, "model.safetensors.incomplete"),
                   r"an unfinished download: there is `model\.safetensors\.incomplete`"),
    "other format": (lambda lm: without(lm, "tf_model.h5"), r"tf_model\.h5 is not a name or format"),
    "checkpoints": (lambda lm: without(lm, "checkpoint-500/config.json", "checkpoint-1000/adapter_config.json"),
                    r"no weights; did you mean `.*checkpoint-1000` \(or another of its 2 models\)\?"),
    "lost shard": (lose_a_shard, r"pytorch_model-00002-of-00002\.bin is missing, which .*index\.json names"),
    "lost": (lose_safetensors_shard, r"model-00001-of-0000\d\.safetensors is missing"),
    "pointer": (lambda lm: (lm / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a pointer of Git LFS"),
    "pointer bin": (lambda lm: (pickled(lm) / "pytorch_model.bin").write_text(POINTER), r"bin is a pointer of Git"),
    "pointer config": (lambda lm: (lm / "config.json").write_text(POINTER), r"config\.json is a pointer of Git LFS"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_says_what_is_wrong(case: str, lm: Path) -> None:
    damage, said = BROKEN[case]
    damage(lm)
    with pytest.raises(UserError, match=said) as caught:
        load_lm(LMConfig(id=str(lm)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.gguf", "net.pt", "net.safetensors"])
def test_a_file_may_be_a_pointer_too(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(POINTER)
    for load in (load_lm, lambda config: load_encoder_of("image", EncoderConfig(id=config.id))):
        with pytest.raises(UserError, match=r"is a pointer of Git LFS.*git lfs pull"):
            load(LMConfig(id=str(tmp_path / name)))


def test_an_encoder_in_pickled_form_says_how_to_convert_it(dwarfs: Path, tmp_path: Path) -> None:
    folder = pickled(shutil.copytree(dwarfs / "encoder", tmp_path / "encoder"))
    with pytest.raises(UserError, match=r"pickled weights only.*AutoModel\.from_pretrained.*save_pretrained"):
        load_encoder_of("image", EncoderConfig(id=str(folder)))


def test_a_run_without_a_checkpoint_is_still_a_run(tmp_path: Path) -> None:
    for name in ("run.yaml", "meta.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is a run of perceptune, not a model"):
        load_lm(LMConfig(id=str(tmp_path)))


def test_a_path_that_cannot_be_a_hubs_name_says_which_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no model folder or file `{tmp_path}/zzz/opt`: {tmp_path} holds no `zzz`"):
        load_lm(LMConfig(id=f"{tmp_path}/zzz/opt"))


@pytest.mark.parametrize(
    ("file", "installed", "said"),
    [
        ("tokenizer.model", False, "with sentencepiece: pip install sentencepiece"),
        ("qwen.tiktoken", False, "with tiktoken: pip install tiktoken"),
        ("tokenizer.model", True, "cannot convert it here: save a fast one"),
        ("vocab.json", False, "cannot convert it here: save a fast one"),
    ],
)
def test_a_slow_tokenizer_names_the_package_that_converts_it(
    file: str, installed: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perceptune.models.model_folders.find_spec", lambda _: "found" if installed else None)
    (tmp_path / file).write_text("x")
    assert said in str(tokenizer_advice(tmp_path))
