"""What samples with several media and conversations must keep, for slots in front of the text and in it.

pytest tests/contract/test_several_media.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from perceptune.errors import UserError
from perceptune.models.text_format import Batch
from perceptune.types import IN_TEXT, Decoding, Sample
from talking import FAMILIES, asked, logits, said, talker

SLOTS = ("late", "sequential")
MAPPED = ("late-mapped", "sequential-mapped")
CROSS = ("cross", "cross-narrow")  # no slots: they differ little by family


def talkers(*layouts: str) -> pytest.MarkDecorator:
    pairs = [(family, one) for one in layouts for family in (("llama", "opt") if one in CROSS else FAMILIES)]
    return pytest.mark.parametrize(("family", "layout"), pairs)


every_count = pytest.mark.parametrize("count", [1, 2, 3])


def question(count: int, text: str = "which is redder?") -> Sample:
    return asked(text, *range(count), marks=[0, 5, len(text) - 1][:count])


def conversation() -> Sample:
    """Three turns: a photo, none, two photos."""
    history = [
        said("user", "what is it?", 0), said("assistant", "a cat", target=True),
        said("user", "and where?"), said("assistant", "on a mat", target=True),
    ]  # fmt: skip
    return asked("compare", 1, 2, 3, marks=[0, 7], history=history, targets=("the same",))


@every_count
@talkers(*SLOTS, *CROSS)
def test_a_token_changes_no_earlier_logit(family: str, layout: str, count: int) -> None:
    model = talker(family, layout)
    [before], [after] = (logits(model, [question(count, f"which is redder{end}")]) for end in "?.")
    end = len("?</s><s>assistant: ".replace("</s>", "+").replace("<s>", "+"))
    assert torch.allclose(before[:-end], after[:-end], atol=1e-5)
    assert not torch.allclose(before[-end:], after[-end:], atol=1e-3)


@talkers(*SLOTS, "cross-narrow")
def test_without_media_nothing_acts(family: str, layout: str) -> None:
    model = talker(family, "late-lin" if layout == "late" else layout)
    messages = [{"role": "user", "content": "which is redder?"}]
    text = model.text.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        plain = model.lm.model(**text).logits[0]
    assert torch.allclose(logits(model, [question(0)])[0], plain, atol=1e-5)


@every_count
@talkers(*SLOTS, *CROSS)
def test_with_a_cache_as_without(family: str, layout: str, count: int) -> None:
    model = talker(family, layout)
    sample, said_so_far = question(count), list[int]()
    prompt = model.prompt([sample])
    ids, mask = prompt.ids, prompt.mask
    for _ in range(6):
        best = model.lm(ids, mask, prompt.slots, use_reference_path=True)[:, -1].argmax(-1)
        said_so_far.append(int(best))
        ids, mask = torch.cat([ids, best[:, None]], 1), torch.cat([mask, mask[:, :1] * 0 + 1], 1)
    end = model.text.eos
    expected = said_so_far[: said_so_far.index(end)] if end in said_so_far else said_so_far
    assert model.generate([sample], Decoding(6)) == [expected]
    assert model.generate([sample], Decoding(6, min_new_tokens=0, repetition_penalty=1.0 + 1e-9)) == [expected]


@talkers(*SLOTS, *MAPPED, *CROSS)
def test_batched_as_alone(family: str, layout: str) -> None:
    """None, one, two, three media and a conversation in one batch, of different lengths."""
    model = talker(family, layout)
    longer = question(2, "which is redder, this or that?")
    shorter = asked("and?", 4, 5, marks=[0], history=[said("user", "what is it?", 0), said("assistant", "a cat")])
    samples = [question(0, "why?"), question(1), longer, question(3), conversation(), shorter]
    assert model.generate([question(3), shorter], Decoding(1)), "more media without earlier turns than with them"
    for together, sample in zip(logits(model, samples), samples, strict=True):
        assert torch.allclose(together, logits(model, [sample])[0], atol=1e-5)
    for decoding in (Decoding(5), Decoding(5, beams=3)):
        rows = model.generate(samples, decoding)
        assert rows == [model.generate([sample], decoding)[0] for sample in samples]


@talkers(*SLOTS, *MAPPED, *CROSS)
def test_split_execution_equals_the_reference_path(family: str, layout: str) -> None:
    model = talker(family, layout)
    samples = [question(2), conversation(), question(0)]
    for one, other in zip(logits(model, samples), logits(model, samples, reference=True), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@talkers(*SLOTS, *MAPPED, *CROSS)
def test_the_order_of_media_is_seen(family: str, layout: str) -> None:
    model = talker(family, layout)
    [one], [other] = (logits(model, [asked("which?", *media)]) for media in ((0, 1), (1, 0)))
    assert not torch.allclose(one[-1], other[-1], atol=1e-3)


@talkers(*SLOTS, *CROSS)
def test_one_medium_gives_what_a_model_for_one_gives(family: str, layout: str) -> None:
    sample = asked("what is it?", 0)
    several, single = talker(family, layout), talker(family, layout, most=1)
    state = {key: value for key, value in several.method.state_dict().items() if not key.startswith("orders.")}
    single.method.load_state_dict(state)
    assert torch.equal(logits(several, [sample])[0], logits(single, [sample])[0])


@talkers(*SLOTS, *CROSS)
def test_a_later_image_moves_no_earlier_logit(family: str, layout: str) -> None:
    model, sample = talker(family, layout), conversation()
    other = replace(sample, media={"image": (*sample.list_media("image")[:1], *sample.list_media("image")[:0:-1])})
    for reference in (False, True):
        [one], [two] = (logits(model, [each], reference=reference) for each in (sample, other))
        turn = len(model.text.prompt_ids(replace(sample, **_until_last_turn(sample)))) - len("+assistant: ")
        assert torch.equal(one[:turn], two[:turn])
        assert not torch.allclose(one[-1], two[-1], atol=1e-3)


def _until_last_turn(sample: Sample) -> dict[str, object]:
    """What makes the sample end with the last question before its own."""
    asked_before = sample.history[-2]
    return {
        "history": sample.history[:-2], "prompt": asked_before.text, "marks": asked_before.marks,
        "media": {"image": sample.list_media("image")[0]},
    }  # fmt: skip


@talkers(*SLOTS, *CROSS)
def test_a_conversation_in_one_pass_costs_what_its_answers_cost_apart(family: str, layout: str) -> None:
    model, whole = talker(family, layout), conversation()
    alone = [replace(one, is_target=False) for one in whole.history]
    media = whole.list_media("image")
    parts = [
        asked("what is it?", 1, targets=("a cat",)),
        replace(whole, media={"image": media[0]}, prompt="and where?", marks=(), history=tuple(alone[:2]),
                targets=("on a mat",)),
        replace(whole, history=tuple(alone)),
    ]  # fmt: skip
    loss, tokens = model.loss(_batch(model, [whole]))
    each = [model.loss(_batch(model, [part])) for part in parts]
    assert tokens == sum(n for _, n in each)
    assert loss.item() == pytest.approx(sum(value.item() for value, _ in each), rel=1e-5)


def _batch(model: object, samples: list[Sample]) -> Batch:
    return Batch(model.tokens(samples), model.encode(samples))  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])  # its embeddings are narrower
def test_slots_in_the_text_are_embeddings_of_transformers(family: str) -> None:
    """The same as handing the LM embeddings in which a medium's states stand in place of tokens."""
    model, sample = talker(family, "sequential"), question(2)
    prompt = model.prompt([sample])
    [slot] = prompt.slots
    table = model.lm.model.get_input_embeddings()
    with torch.no_grad():
        embeddings = table(prompt.ids.clamp_min(0))
        embeddings[prompt.ids == IN_TEXT] = slot.states[0][0]
        expected = model.lm.model(inputs_embeds=embeddings).logits[0]
    assert torch.allclose(logits(model, [sample])[0], expected, atol=1e-5)


def test_slots_that_see_the_whole_text_are_refused_several_answers() -> None:
    model, talk = talker("llama", "official"), replace(conversation(), media={})
    with pytest.raises(UserError, match=r"sample `q` has several answers, .*slot_mask: causal`, or `turns: each`"):
        model.check_modalities([talk])
    model.check_modalities([replace(talk, history=tuple(replace(turn, is_target=False) for turn in talk.history))])
    talker("llama", "late").check_modalities([talk])
