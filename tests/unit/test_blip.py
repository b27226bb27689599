"""The Q-Former backbone computes what transformers' InstructBLIP and BLIP-2 compute, alone and in any batch.

pytest tests/unit/test_blip.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import GenerationConfig

import blips
import perceptune
import support
from perceptune.data.metrics.base import DocumentFrequencies
from perceptune.errors import UserError
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.instructblip.text_format import BlipTokens
from perceptune.types import Consensus, Decoding, Sample

SHORT, LONG = "color?", "what color is this picture?"
every_kind = pytest.mark.parametrize("kind", blips.KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blips.save_all(tmp_path_factory.mktemp("blips"))


def built(folder: Path, kind: str, **changes: Any) -> InstructBlipModel:
    cache = {"features": "memory"}
    return cast(InstructBlipModel, perceptune.build(blips.recipe(folder / kind, **{"cache": cache, **changes})))


def samples(folder: Path) -> list[Sample]:
    """Questions of different lengths, answers too, on different pictures."""
    pairs = [(SHORT, "red"), (LONG, "blue"), ("is this a picture?", "y")]
    return [Sample(str(i), {"image": folder / f"data/train{i}.png"}, q, (a,)) for i, (q, a) in enumerate(pairs)]


def as_transformers_takes_it(folder: Path, model: InstructBlipModel, sample: Sample, *, answer: bool) -> dict[str, Any]:
    """One row, put together by hand from the published layout: image tokens, start token, text."""
    tokenizer, t5 = support.tokenizer(), model.blip.encoder_decoder
    text = f"Question: {sample.prompt} Answer:"
    ids = [blips.IMAGE_TOKEN] * blips.N_QUERIES + ([1] if "llama" in str(model.recipe.lm.id) else [])
    ids += tokenizer(text).input_ids + ([2] if t5 else [])
    said = [*tokenizer(sample.targets[0] if t5 else f" {sample.targets[0]}").input_ids, 2]
    given: dict[str, Any] = {"pixel_values": model.encoders["image"].load(sample.media["image"])[None]}
    if model.blip.reads_instructions:
        read = blips.qformer_tokenizer()(text, return_tensors="pt")
        given |= {"qformer_input_ids": read.input_ids, "qformer_attention_mask": read.attention_mask}
    if not answer:
        return {**given, "input_ids": torch.tensor([ids])}
    if t5:
        return {**given, "input_ids": torch.tensor([ids]), "labels": torch.tensor([said])}
    labels = [-100] * len(ids) + said
    return {**given, "input_ids": torch.tensor([ids + said]), "labels": torch.tensor([labels])}


@every_kind
def test_the_loss_is_that_of_transformers(folder: Path, kind: str) -> None:
    model, theirs = built(folder, kind), blips.random_blip(kind)
    for sample in samples(folder):
        with torch.no_grad():
            loss, n = model.loss(model.collate([sample]))
            expected = theirs(**as_transformers_takes_it(folder, model, sample, answer=True)).loss
        assert n == len(sample.targets[0]) + 1 + (not model.blip.encoder_decoder)
        assert float(loss) / n == pytest.approx(float(expected), rel=1e-5)


@every_kind
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_transformers(folder: Path, kind: str, beams: int) -> None:
    model, theirs = built(folder, kind), blips.random_blip(kind)
    start = {"decoder_start_token_id": 0} if model.blip.encoder_decoder else {}
    config = GenerationConfig(max_new_tokens=6, num_beams=beams, eos_token_id=2, pad_token_id=0, **start)
    distinct = set()
    for sample in samples(folder):
        given = as_transformers_takes_it(folder, model, sample, answer=False)
        row = theirs.generate(**given, generation_config=config)[0]
        # What it gives a decoder-only LM back is the prompt, too, where that went in as tokens.
        new = row[given["input_ids"].shape[1] :] if row.shape[0] > 7 else row
        expected = model.text.decode([token for token in new.tolist() if token > 2])
        [found] = model.answer([sample], decoding=Decoding(6, beams=beams))
        assert found == expected
        distinct.add(found)
    assert len(distinct) > 1


@every_kind
def test_a_batch_is_its_rows(folder: Path, kind: str) -> None:
    model, rows = built(folder, kind), samples(folder)
    with torch.no_grad():
        together, n = model.loss(model.collate(rows))
        alone = [model.loss(model.collate([row])) for row in rows]
    assert n == sum(m for _, m in alone)
    assert float(together) == pytest.approx(sum(float(loss) for loss, _ in alone), rel=1e-5)
    model.frequencies = DocumentFrequencies(20, "characters", {"a": 12})
    for decoding in (Decoding(6), Decoding(6, beams=3), Decoding(6, sample=True), Decoding(max_length=30),
                     Decoding(6, consensus=Consensus(samples=3, beams=2, temperature=1.5))):  # fmt: skip
        answers = [model.answer([row], decoding=decoding)[0] for row in rows]
        assert model.answer(rows, decoding=decoding) == answers
        assert len(set(answers)) > 1


@every_kind
def test_max_length_counts_the_text_and_not_the_image(folder: Path, kind: str) -> None:
    model = built(folder, kind)
    [row, *_] = samples(folder)
    prompt = len(model.text.prompt_ids(row)) - blips.N_QUERIES
    for sample in samples(folder):
        new = max(1, prompt + 3 - len(model.text.prompt_ids(sample)) + blips.N_QUERIES)
        limited = model.answer([sample], decoding=Decoding(max_length=prompt + 3))
        assert limited == model.answer([sample], decoding=Decoding(new))
    assert model.answer([row], decoding=Decoding(max_length=prompt + 3)) != model.answer([row], decoding=Decoding(1))


@pytest.mark.parametrize("kind", ["llama", "blip2-opt"])
def test_supervising_everything_takes_in_the_question(folder: Path, kind: str) -> None:
    model = built(folder, kind, text={"supervise": "all"})
    [row, *_] = samples(folder)
    batch = model.collate([row])
    assert batch.n_tokens == batch.tokens.input_ids.shape[1] - blips.N_QUERIES - 1
    assert not batch.tokens.supervised[0, : blips.N_QUERIES + 1].any()


def test_the_parts_of_a_text_lie_where_each_kind_wants_them(folder: Path) -> None:
    rows = samples(folder)[:2]
    decoder = cast(BlipTokens, built(folder, "llama").collate(rows).tokens)
    assert decoder.labels is None
    first = int((decoder.attention_mask[0] == 0).sum())  # the short one is padded on the left
    assert first > 0
    assert decoder.input_ids[0, first : first + 4].tolist() == [blips.IMAGE_TOKEN] * 3 + [1]
    assert decoder.input_ids[:, -1].tolist() == [2, 2]
    both = cast(BlipTokens, built(folder, "t5").collate(rows).tokens)
    assert both.labels is not None
    assert both.attention_mask[0].tolist() == sorted(both.attention_mask[0].tolist(), reverse=True)
    assert both.labels[0].tolist()[-1] == -100
    assert both.labels[1].tolist()[-1] == 2
    [instruction] = both.instructions
    assert instruction.ids[0, 0] == 2  # [CLS] of the Q-Former's own vocabulary
    assert int(instruction.mask[0].sum()) < instruction.mask.shape[1] == int(instruction.mask[1].sum())


@every_kind
def test_cached_features_are_the_computed_ones(folder: Path, tmp_path: Path, kind: str) -> None:
    rows = samples(folder)
    losses = []
    for cache in ({"features": "off"}, {"features": "memory"}, {"features": "disk", "dir": str(tmp_path)}):
        model = built(folder, kind, cache=cache)
        model.precompute(rows)
        assert (model.get_cached(rows) is not None) == (cache["features"] != "off")
        losses.append(float(model.loss(model.collate(rows))[0].detach()))
    assert len(set(losses)) == 1
    theirs = blips.random_blip(kind).vision_model
    pixels = torch.stack([model.encoders["image"].load(row.media["image"]) for row in rows])
    assert torch.allclose(model.encode(rows)["image"].values[:, 0], theirs(pixels).last_hidden_state, atol=1e-5)


def test_the_lm_alone_is_cast_to_bfloat16(folder: Path) -> None:
    model = cast(InstructBlipModel, perceptune.build(blips.recipe(folder / "llama"), dtype="bfloat16"))
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.method.parameters()} == {torch.float32}
    rough, exact = (m.loss(m.collate(samples(folder)))[0].detach() for m in (model, built(folder, "llama")))
    assert float(rough) == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm": "default"}, "name its folder"),
        ({"encoders": {"image": "other"}}, "brings its own ViT"),
        ({"encoders": {"image": {"max_media": 2}}}, "takes one image a sample; `backbone: splice` takes several"),
        ({"text": {"template": "chat"}}, "text.template: `chat` is not for"),
        ({"encoders": {"image": {}, "audio": {}}}, "no other"),
        ({"lm": {"id": "LLAMA", "layers": "model.layers"}}, "lm.layers"),
        ({"decode": {"beams": 2, "length_normalization": "total"}}, "length_normalization"),
        ({"lm": "DATA"}, "is no model"),
        ({"method": "epalm"}, "unknown qformer-method `epalm`"),
        ({"method": {"name": "head", "layers": [4]}}, "its layers are 0 to 3"),
        ({"method": {"name": "full", "prat": 1}}, "unknown key `prat`"),
        ({"lm": "T5", "text": {"supervise": "all"}}, "decoder-only"),
        ({"train": {"freeze": ["taken.projektion"]}}, "did you mean `taken.projection`"),
    ],
)
def test_mistakes_are_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    places = {"LLAMA": "llama", "DATA": "data", "T5": "t5"}

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: placed(one) for key, one in value.items()}
        return str(folder / places[value]) if isinstance(value, str) and value in places else value

    with pytest.raises(UserError, match=message):
        perceptune.build({**blips.recipe(folder / "llama"), **placed(changes)})


def test_a_missing_or_foreign_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    without = shutil.copytree(folder / "llama", tmp_path / "without")
    shutil.rmtree(without / "qformer_tokenizer")
    with pytest.raises(UserError, match="no folder `qformer_tokenizer`"):
        perceptune.build(blips.recipe(without))
    support.tokenizer().save_pretrained(without / "qformer_tokenizer")
    with pytest.raises(UserError, match="belongs to another model"):
        perceptune.build(blips.recipe(without))


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_tokens_without_a_row_and_the_images_own_are_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    larger = shutil.copytree(folder / kind, tmp_path / kind)
    tokenizer = support.tokenizer()
    tokenizer.add_tokens([f"<{n}>" for n in range(6)])
    tokenizer.save_pretrained(larger)
    text = perceptune.build(blips.recipe(larger)).text
    for prompt, target in (("is it <5>?", "red"), ("is it?", "<5>")):
        with pytest.raises(UserError, match=rf"sample `s`: .*`<5>`.*has {support.SIZE} rows"):
            text.training_ids(Sample("s", {}, prompt), target)
    tokenizer = support.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>", "<c>", "<image>"]})
    assert tokenizer.convert_tokens_to_ids("<image>") == blips.IMAGE_TOKEN
    tokenizer.save_pretrained(larger)
    with pytest.raises(UserError, match=r"text\.template: the image's tokens stand in front"):
        perceptune.build(blips.recipe(larger, text={"template": "<image>{prompt}"}))


def test_samples_that_do_not_fit_are_named(folder: Path) -> None:
    model = built(folder, "llama")
    with pytest.raises(UserError, match="sample `blind` has no image"):
        model.answer([Sample("blind", {}, SHORT)])
    with pytest.raises(UserError, match=r"sample `long`: .* tokens of instruction"):
        model.answer([Sample("long", {"image": folder / "data/train0.png"}, "what " * 20)])


def test_a_spliced_lm_is_no_instructblip(folder: Path, dwarfs: Path) -> None:
    with pytest.raises(UserError, match="of model type `llama`"):
        perceptune.build(blips.recipe(dwarfs / "lm"))
