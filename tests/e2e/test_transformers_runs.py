"""Runs in transformers: pipelines, auto classes, the stub, its generation options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer, pipeline
from transformers.generation import StoppingCriteria

import perceptune
import runs as dwarf_runs
from hfruns import messages_of
from perceptune.cli.main import run as cli
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.hf import PerceptuneConfig, PerceptuneForConditionalGeneration, PerceptuneProcessor

ROWS = 8


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported") / "hf"
    assert cli(["export", str(trained), str(place), "--to", "transformers"]) == 0
    return place


@pytest.fixture(scope="module")
def samples(dwarfs: Path) -> list[perceptune.Sample]:
    return list(make_task(perceptune.load_recipe(dwarf_runs.recipe(dwarfs))).samples("train"))[:ROWS]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def batch_of(processor: PerceptuneProcessor, samples: list[perceptune.Sample]) -> Any:
    chats = [messages_of(sample) for sample in samples]
    return processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")


def test_the_folder_is_small_and_names_its_bases(folder: Path, trained: Path, dwarfs: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    meta = json.loads((trained / "meta.json").read_text())
    assert {part: found["fingerprint"] for part, found in config["bases"].items()} == {
        part: found["fingerprint"] for part, found in meta["base"].items()
    }
    assert config["bases"]["lm"]["id"] == str(dwarfs / "lm")
    assert "revision" in config["bases"]["lm"]
    assert str(dwarfs / "data") not in json.dumps(config), "data stay with their owner"
    method = (trained / "method.safetensors").stat().st_size
    assert (folder / "model.safetensors").stat().st_size < method + 4096


def test_a_pipeline_gives_the_answers_of_the_run(folder: Path, trained: Path, samples: list[perceptune.Sample]) -> None:
    expected = perceptune.load(trained).answer(samples)
    assert len(set(expected)) > 1
    ask = pipeline("image-text-to-text", model=str(folder))
    found = [ask(text=messages_of(sample), return_full_text=False)[0]["generated_text"] for sample in samples]
    assert found == expected


def test_a_fresh_process_needs_no_import_with_the_stub(
    folder: Path, trained: Path, samples: list[perceptune.Sample], tmp_path: Path
) -> None:
    chats = [messages_of(sample) for sample in samples[:3]]
    code = (
        "import json, sys; from transformers import pipeline; "
        f"ask = pipeline('image-text-to-text', model={str(folder)!r}, trust_remote_code=True); "
        "print(json.dumps([ask(text=chat, return_full_text=False)[0]['generated_text']"
        " for chat in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, input=json.dumps(chats), capture_output=True, text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == perceptune.load(trained).answer(samples[:3])


def test_import_registers_without_loading_transformers() -> None:
    code = (
        "import perceptune, sys; assert 'transformers' not in sys.modules and 'torch' not in sys.modules; "
        "from transformers import AutoConfig; print(type(AutoConfig.for_model('perceptune')).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "perceptune.models.hf.configuration"


def test_images_of_pillow_and_texts_in_the_template_are_the_same(
    loaded: tuple[Any, Any], samples: list[perceptune.Sample]
) -> None:
    _, processor = loaded
    whole = batch_of(processor, samples)
    texts = [processor.apply_chat_template(messages_of(sample)) for sample in samples]
    images = [Image.open(sample.list_media("image")[0]) for sample in samples]  # type: ignore[arg-type]
    again = processor(images=images, text=texts, return_tensors="pt")
    assert again.keys() == whole.keys()
    for name in whole:
        assert torch.equal(again[name], whole[name]), name
    tagged = processor(images=images, text=[f"<image>\n{text}" for text in texts], return_tensors="pt")
    assert torch.equal(tagged["input_ids"], whole["input_ids"]), "slots in front of the text need no tag"


def test_padding_on_the_right_changes_no_logits(loaded: tuple[Any, Any], samples: list[perceptune.Sample]) -> None:
    model, processor = loaded
    chats = [messages_of(sample) for sample in samples]
    chats[0][0]["content"][-1]["text"] = "and?"
    sides = {}
    for side in ("left", "right"):
        batch = processor.apply_chat_template(
            chats, tokenize=True, return_dict=True, return_tensors="pt", padding_side=side
        )
        assert not batch["attention_mask"].all()
        with torch.no_grad():
            sides[side] = model(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(sides["left"], sides["right"], rtol=0, atol=1e-5)


def test_streaming_stopping_several_sequences_and_scores(
    loaded: tuple[Any, Any], samples: list[perceptune.Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = loaded
    batch = batch_of(processor, samples[:1])
    width = batch["input_ids"].shape[1]
    found = model.generate(**batch, streamer=TextStreamer(processor.tokenizer, skip_prompt=True), max_new_tokens=5)
    assert capsys.readouterr().out.strip() == processor.decode(found[0, width:])

    class After(StoppingCriteria):
        def __call__(self, ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return torch.full((len(ids),), ids.shape[1] >= width + 2)

    stopped = model.generate(**batch, stopping_criteria=[After()], max_new_tokens=5)
    assert torch.equal(stopped, found[:, : width + 2])
    best = model.generate(
        **batch, num_beams=3, num_return_sequences=3, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    assert len(best.sequences) == 3
    assert best.sequences_scores.tolist() == sorted(best.sequences_scores.tolist(), reverse=True)
    drawn = model.generate(**batch, do_sample=True, num_return_sequences=4, max_new_tokens=4)
    assert len(drawn) == 4
    again = model.generate(**batch, num_beams=1, max_new_tokens=4, return_dict_in_generate=True, output_scores=True)
    assert len(again.scores) == again.sequences.shape[1] - width


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"assistant_model": object()}, "assistant_model"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"inputs_embeds": torch.zeros(1, 2, 3)}, "inputs_embeds"),
    ],
)
def test_generation_that_slots_cannot_have_is_refused(
    options: dict[str, Any], named: str, loaded: tuple[Any, Any], samples: list[perceptune.Sample]
) -> None:
    model, processor = loaded
    with pytest.raises(ValueError, match=f"^{named}: "):
        model.generate(**batch_of(processor, samples[:1]), **options)


def test_rows_without_media_and_a_conversation_that_goes_on(
    loaded: tuple[Any, Any], samples: list[perceptune.Sample]
) -> None:
    model, processor = loaded
    chats = [messages_of(samples[0]), [{"role": "user", "content": samples[1].prompt}]]
    mixed = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    assert mixed["image_counts"].tolist() == [1, 0]
    without = perceptune.Sample("text", {}, samples[1].prompt)
    expected = model.model.answer([samples[0], without])
    found = model.generate(**mixed)[:, mixed["input_ids"].shape[1] :]
    assert processor.batch_decode(found, skip_special_tokens=True) == expected
    with pytest.raises(ValueError, match="2 media for 1 rows"):
        model(input_ids=mixed["input_ids"][:1], pixel_values=torch.cat([mixed["pixel_values"]] * 2))


def test_a_cache_goes_on_where_it_was(loaded: tuple[Any, Any], samples: list[perceptune.Sample]) -> None:
    model, processor = loaded
    batch = batch_of(processor, samples)
    first = model(**batch, use_cache=True)
    ids = torch.cat([batch["input_ids"], first.logits[:, -1:].argmax(-1)], 1)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    step = model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=first.past_key_values)
    whole = model(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"])
    torch.testing.assert_close(step.logits[:, -1], whole.logits[:, -1], rtol=0, atol=1e-5)
    assert first.past_key_values.get_seq_length() == ids.shape[1]


def test_what_cannot_be_loaded_is_said(folder: Path, dwarfs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained on another base model"):
        PerceptuneForConditionalGeneration.from_pretrained(folder, overrides=[f"lm.id={dwarfs / 'opt'}"])
    with pytest.raises(TypeError, match="`quantization_config` is not for a Perceptune model"):
        PerceptuneForConditionalGeneration.from_pretrained(folder, quantization_config={"a": 1})
    with pytest.raises(UserError, match="holds no `recipe`"):
        PerceptuneForConditionalGeneration(PerceptuneConfig())
    config = PerceptuneConfig.from_pretrained(folder)
    config.recipe["task"] = {"name": "elsewhere.task"}
    with pytest.raises(UserError, match="third-party code"):
        PerceptuneForConditionalGeneration(config)
    assert cli(["export", str(folder), str(tmp_path / "again"), "--to", "transformers"]) == 2
