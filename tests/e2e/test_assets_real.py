"""The embedded default assets as they really are: fetched into the user's cache on first use."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from perceptune.encoders.base import load_encoder
from perceptune.utils import downloads
from perceptune.utils.assets import ASSETS

pytestmark = pytest.mark.assets

NOTHING_AMISS: dict[str, Any] = {
    "missing_keys": set(),
    "unexpected_keys": set(),
    "mismatched_keys": set(),
    "error_msgs": [],
}


def test_dinov2_loads_strictly() -> None:
    from transformers import Dinov2Model

    folder = downloads.path("dinov2-small")
    model, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert report == NOTHING_AMISS
    assert model.num_parameters() == 22_056_192  # the published 22,056,576 less the mask token's 384
    with torch.no_grad():
        states = model.eval()(torch.zeros(1, 3, 112, 112)).last_hidden_state
    assert states.shape == (1, 1 + 8 * 8, 384)
    assert states.isfinite().all()


def test_dinov2_preprocessing_is_the_published_one() -> None:
    # Named in full: without torchvision the automatic classes do not find it.
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    processor = BitImageProcessorPil.from_pretrained(downloads.path("dinov2-small"))
    assert (processor.size["shortest_edge"], processor.resample) == (256, 3)
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (224, 224)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]


def test_lm_loads_strictly_and_knows_paris() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = downloads.path("smollm2-135m-instruct")
    # Stored in bfloat16, which a CPU without a unit for it multiplies twenty times as slowly.
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert report == NOTHING_AMISS
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert prompt["input_ids"].tolist() == [[504, 3575, 282, 4649, 314]]
    text = tokenizer.decode(model.generate(**prompt, do_sample=False, max_new_tokens=5)[0])
    assert " Paris" in text


def test_lm_tokenizer_is_the_published_one() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(downloads.path("smollm2-135m-instruct"))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (len(tokenizer), tokenizer.model_max_length) == (49152, 8192)
    assert tokenizer.tokenize("a\n\n2  30") == ["a", "ĊĊ", "2", "ĠĠ", "3", "0"]  # digits are cut out first
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")


@pytest.mark.skipif(downloads.present("whisper-base") is None, reason="whisper-base is not fetched")
def test_whisper_is_an_encoder() -> None:
    encoder = load_encoder(downloads.path("whisper-base"))
    assert (encoder.n_layers, encoder.dim, encoder.n_tokens) == (6, 512, 1500)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 20_590_592
    assert encoder.preprocessing()["seconds"] == 30


@pytest.mark.parametrize(("split", "images", "questions"), [("train", 4000, 38575), ("test", 1000, 9673)])
def test_easy_vqa_is_complete(split: str, images: int, questions: int) -> None:
    folder = downloads.path("easy-vqa")
    assert len(list((folder / split / "images").glob("*.png"))) == images
    rows = json.loads((folder / split / "questions.json").read_text(encoding="utf-8"))
    assert len(rows) == questions
    answers = set((folder / "answers.txt").read_text(encoding="utf-8").split())
    assert len(answers) == 13
    assert {answer for _, answer, _ in rows} <= answers


@pytest.mark.parametrize("name", downloads.default_names())
def test_folder_explains_itself(name: str) -> None:
    card = json.loads((downloads.path(name) / "asset.json").read_text(encoding="utf-8"))
    if "wheels" in card:  # a folder made by an earlier version names its one wheel otherwise
        card = card["wheels"][0]
    [wheel, *_] = ASSETS[name].wheels
    assert (card["sha256"], card["requirement"]) == (wheel.sha256, wheel.requirement)
