"""What is named as a model and is none: an adapter, a GGUF file, a slow tokenizer, a typo. Each says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from perceptune.config.schema import EncoderConfig, LMConfig
from perceptune.encoders.base import weight_files
from perceptune.errors import UserError
from perceptune.models.model_folders import tokenizer_advice
from perceptune.models.pretrained import load_tokenizer, resolve
from perceptune.models.slots.build import load_encoder_of, load_lm

ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "facebook/opt-125m"})
CONFIG = json.dumps({"model_type": "opt"})
FOLDERS = {
    "adapter": ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": "x"},
                r"an adapter \(LORA\) of `facebook/opt-125m`, not a model: .*merge_and_unload"),
    "adapter that says nothing": ({"adapter_config.json": "[]"}, r"an adapter \(PEFT\), not a model"),
    "adapter with a config": ({"adapter_config.json": ADAPTER, "config.json": CONFIG}, "an adapter"),
    "gguf": ({"model.Q4_K.gguf": "GGUF", "README.md": ""},
             r"GGUF file, .*gguf_file='model\.Q4_K\.gguf'.*pip install gguf"),
    "run": ({"method.safetensors": "", "meta.json": "{}"}, "is a run of perceptune"),
    "pipeline": ({"model_index.json": "{}", "text_encoder/config.json": CONFIG}, "diffusers.*mean `.*text_encoder`"),
    "hub cache": ({"snapshots/abc/config.json": CONFIG}, r"holds no config\.json; did you mean `.*snapshots/abc`"),
    "parent": ({"opt/config.json": CONFIG, "notes.txt": ""}, r"did you mean `.*/opt`\?"),
    "others": ({"a.txt": "", "b.txt": ""}, r"it holds no config\.json, only a\.txt, b\.txt"),
    "nothing": ({}, r"no config\.json and nothing else"),
    "pointer": ({"config.json": CONFIG, "model.safetensors": "version https://git-lfs.github.com/spec/v1\noid"},
                r"model\.safetensors is a pointer of Git LFS.*git lfs pull"),
}  # fmt: skip


def make(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_says_what_it_is(case: str, tmp_path: Path) -> None:
    files, said = FOLDERS[case]
    folder = make(tmp_path / "named", files)
    with pytest.raises(UserError, match=said) as as_encoder:
        load_encoder_of("image", EncoderConfig(id=str(folder)))
    assert "\n" not in str(as_encoder.value)
    merged = "an adapter|adapter has no weights|its base"
    said = {"adapter": merged, "gguf": "is damaged or cut off"}.get(case.partition(" ")[0], said)
    with pytest.raises(UserError, match=said):
        load_lm(LMConfig(id=str(folder)))


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "pytorch_model.bin", "model.onnx"])
def test_a_file_says_what_it_is(name: str, tmp_path: Path) -> None:
    file = make(tmp_path / "named", {name: "x", "config.json": CONFIG}) / name
    said = "GGUF file, .*llama.cpp|is not a GGUF file"
    if not name.endswith("gguf"):
        said = f"file of weights: name the folder.*`{file.parent}`"
    for load in (
        lambda: load_lm(LMConfig(id=str(file))),
        lambda: load_encoder_of("image", EncoderConfig(id=str(file))),
    ):
        with pytest.raises(UserError, match=said):
            load()


@pytest.mark.parametrize("name", ["defualt", "nosuch", "user/nosuch"])
def test_a_name_that_no_hub_knows_is_one_line_that_begins_with_it(name: str) -> None:
    for load in (lambda: load_lm(LMConfig(id=name)), lambda: load_encoder_of("image", EncoderConfig(id=name))):
        with pytest.raises(UserError, match=f"no model folder or file `{name}`") as caught:
            load()
        assert "\n" not in str(caught.value)
        assert name != "defualt" or "did you mean `default`?" in str(caught.value)


def test_files_that_are_an_encoder_are_taken(tmp_path: Path) -> None:
    file = make(tmp_path / "named", {"net.pt": "x"}) / "net.pt"
    assert resolve(str(file), "", False, files=weight_files()) == str(file)
    with pytest.raises(UserError, match="file of weights"):
        resolve(str(file), "", False)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("models/SMOL-LM", "in other letter case: `smol-lm`"),
        ("Models/smol-lm", "in other letter case: `models`"),
        ("models\\smol-lm", "a backslash does not part folders here: write `models/smol-lm`"),
        ("link", "is a link to /nowhere/lm, which is not there"),
    ],
)
def test_a_name_that_differs_in_letter_case_or_form_is_named(typed: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "models/smol-lm").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/nowhere/lm")
    with pytest.raises(UserError, match=f"no model folder or file `.*`: .*{said}"):
        resolve(f"{tmp_path}/{typed}", "", False)


@pytest.mark.parametrize("typed", ["{}/models/smol-ml", "{}/model/smol-lm", "{}/models/smol-lm/"[:-2] + "n"])
def test_a_typo_in_a_path_names_the_nearest(typed: str, tmp_path: Path) -> None:
    (tmp_path / "models/smol-lm").mkdir(parents=True)
    near = "models`" if "/model/" in typed else "models/smol-lm`"
    with pytest.raises(UserError, match=f"no model folder or file `.*`; did you mean `{tmp_path}/{near}"):
        resolve(typed.format(tmp_path), "", False)


@pytest.mark.parametrize(
    ("name", "near"),
    [("models/smol-ml", "models/smol-lm"), ("smol-ml", "smol-lm"), ("facebook/opt-125", "facebook/opt-125m")],
)
def test_so_does_one_that_might_be_a_name_on_a_hub(
    name: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / near).mkdir(parents=True)
    if name.startswith("facebook"):
        shutil.rmtree(tmp_path / "facebook")  # found among the published names that we know
    for load in (lambda: load_lm(LMConfig(id=name)), lambda: load_encoder_of("image", EncoderConfig(id=name))):
        with pytest.raises(UserError, match=rf"`: no model folder or file `{name}`; did you mean `{near}`\?"):
            load()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.model": "x", "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}'},
         r"slow tokenizer \(tokenizer\.model\) and no tokenizer\.json"),
        ({"vocab.json": '{"a": 0, "<unk>": 1}', "merges.txt": "#version: 0.2\n",
          "tokenizer_config.json": '{"tokenizer_class": "CTRLTokenizer"}'},
         r"slow tokenizer \(merges\.txt, vocab\.json\)"),
        ({}, r"has no tokenizer: there is no tokenizer\.json"),
    ],
    ids=["sentencepiece", "python", "none"],
)  # fmt: skip
def test_a_slow_tokenizer_says_how_to_make_a_fast_one(files: dict[str, str], said: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "lm", {"config.json": CONFIG, **files})
    with pytest.raises(UserError, match=f"lm `{folder}`: .*{said}"):
        load_tokenizer(str(folder), str(folder), None)


def test_a_fast_tokenizer_needs_no_advice(dwarfs: Path) -> None:
    assert tokenizer_advice(dwarfs / "lm") is None
    assert load_tokenizer("lm", str(dwarfs / "lm"), None).is_fast
