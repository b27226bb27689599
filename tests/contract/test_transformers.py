"""Every method on every LM family in transformers' own `generate`: the tokens and logits of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import support
from hfruns import asked_of, messages_of, scrambled
from perceptune.config.recipe import load_recipe
from perceptune.data.build_task import make_task
from perceptune.hf import PerceptuneForConditionalGeneration, PerceptuneProcessor
from perceptune.types import IN_TEXT, Decoding, Mark, Message, Sample
from rows import FAMILIES, method_names, method_section
from talking import LAYOUTS

NEW = 6  # tokens


@pytest.fixture(scope="module")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LMs with a chat template."""
    folder = tmp_path_factory.mktemp("talkers")
    for family in ("llama", "opt"):
        support.save_chat_lm(folder / family, family)
    support.save_encoder(folder / "encoder")
    support.save_data(folder / "data", rows=2)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", method_names())
def test_its_loop_answers_as_ours(name: str, family: str, models: Path, tmp_path: Path) -> None:
    given = support.recipe(
        models / family, models / "encoder", models / "data/train.jsonl", method=method_section(name)
    )
    scrambled(given).save_pretrained(tmp_path)
    model = PerceptuneForConditionalGeneration.from_pretrained(tmp_path)
    processor = PerceptuneProcessor.from_pretrained(tmp_path)
    samples = list(make_task(load_recipe(given)).samples("train"))
    batch = processor.apply_chat_template(
        [messages_of(sample) for sample in samples], tokenize=True, return_dict=True, return_tensors="pt"
    )
    width = batch["input_ids"].shape[1]
    for beams in (1, 3):
        found = model.generate(**batch, max_new_tokens=NEW, num_beams=beams)
        answers = processor.batch_decode(found[:, width:], skip_special_tokens=True)
        assert answers == model.model.answer(samples, decoding=Decoding(max_new_tokens=NEW, beams=beams))
    steps: Any = model.generate(
        **batch, max_new_tokens=NEW, num_beams=1, return_dict_in_generate=True, output_logits=True
    )
    ours = asked_of(model.model, samples, steps.sequences[:, width:])
    for number, logits in enumerate(steps.logits):
        torch.testing.assert_close(logits, ours[:, number], rtol=0, atol=1e-5 * float(ours.abs().max().clamp_min(1)))


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversations_with_several_media_are_those_of_ours(layout: str, family: str, talkers: Path) -> None:
    method = LAYOUTS[layout]
    encoders = {"image": {"id": str(talkers / "encoder"), "max_media": 3}}
    text = {"template": "chat", "target": "{target}"}
    given = support.recipe(
        talkers / family, talkers / "encoder", talkers / "data/train.jsonl", method=method, encoders=encoders, text=text
    )
    model = scrambled(given)
    processor = PerceptuneProcessor.from_model(model)
    first, second = (talkers / "data/train0.png", talkers / "data/train1.png")
    chats = [
        [
            {"role": "user", "content": [{"type": "image", "path": str(first)}, {"type": "text", "text": "color?"}]},
            {"role": "assistant", "content": "red"},
            {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image", "path": str(second)},
                                         {"type": "text", "text": "here?"}]},
        ],
        [{"role": "user", "content": [{"type": "image", "path": str(second)}, {"type": "image", "path": str(first)},
                                      {"type": "text", "text": "what changed?"}]}],
    ]  # fmt: skip
    samples = [
        Sample("a", {"image": (first, second)}, "and\nhere?", marks=(Mark(4, "image"),),
               history=(Message("user", "color?", (Mark(0, "image"),)), Message("assistant", "red"))),
        Sample("b", {"image": (second, first)}, "what changed?", marks=(Mark(0, "image"), Mark(0, "image"))),
    ]  # fmt: skip
    batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    prompt = model.model.prompt(samples)
    with torch.no_grad():
        ours, theirs = model.model.lm(prompt.ids, prompt.mask, prompt.slots), model(**batch).logits
    seen = prompt.mask.bool()
    torch.testing.assert_close(theirs[seen], ours[seen], rtol=0, atol=1e-5)
    found = model.generate(**batch, max_new_tokens=NEW, num_beams=3)
    answers = processor.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answers == model.model.answer(samples, decoding=Decoding(max_new_tokens=NEW, beams=3))
    if model.config.placeholders:  # the same texts, written out with `<image>`
        texts = processor.apply_chat_template(chats)
        again = processor(text=texts, images=[[first, second], [second, first]], return_tensors="pt")
        assert torch.equal(again["input_ids"], batch["input_ids"])


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_media_in_front_are_in_front_of_the_template(family: str, talkers: Path) -> None:
    """As for `perceptune answer`, which has no marks; in one call and by way of the text."""
    method = LAYOUTS["sequential"]
    given = support.recipe(talkers / family, talkers / "encoder", talkers / "data/train.jsonl", method=method)
    model = scrambled(given)
    processor = PerceptuneProcessor.from_model(model)
    picture = talkers / "data/train0.png"
    chat = messages_of(Sample("a", {"image": picture}, "color?"))
    batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    [placeholder] = model.config.placeholders.values()
    ours = model.model.text.prompt_ids(Sample("a", {"image": picture}, "color?"))
    assert batch["input_ids"][0].tolist() == [placeholder if token == IN_TEXT else token for token in ours]
    again = processor(text=processor.apply_chat_template(chat), images=picture, return_tensors="pt")
    assert torch.equal(again["input_ids"], batch["input_ids"])
