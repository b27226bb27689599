"""A turn that continues a known conversation gets the tokens that it gets without it.

pytest tests/contract/test_prefix_reuse.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.generation.generate import ContinuousBatch, GeneratedSequence
from perceptune.lm.generation.prefix_reuse import Content, ContinuedState, KnownText, KnownTexts, make_keeper
from perceptune.lm.generation.sampling import greedy
from perceptune.models.slots.model import SlotModel
from perceptune.types import Message, Sample
from talking import FAMILIES, asked, said, talker

STEPS = 5


PAIRS = [(family, layout) for family in (*FAMILIES, "bloom", "mistral") for layout in ("late", "sequential")]
PAIRS += [("llama", "cross"), ("opt", "cross-narrow")]


@pytest.fixture(params=PAIRS)
def model(request: pytest.FixtureRequest) -> SlotModel:
    made = talker(*request.param)
    made.lm.requires_grad_(requires_grad=False)
    return made


class Counted(KnownTexts):
    """Remembers which texts were found."""

    def __init__(self, megabytes: float) -> None:
        super().__init__(megabytes)
        self.lookups: list[bool] = []

    def find(self, *wanted: Any) -> KnownText | None:
        found = super().find(*wanted)
        self.lookups.append(found is not None)
        return found


@torch.no_grad()
def answered(model: SlotModel, sample: Sample, known: KnownTexts | None) -> tuple[list[int], torch.Tensor]:
    """The answer's tokens and the logits of its first; the text is kept in `known`."""
    prompt, content = model.prompt([sample]), _content(model, sample)
    found = None if known is None else known.find("run", content.columns)
    fresh = found is None
    state = DecodeState(model.lm, prompt, 8) if fresh else ContinuedState(model.lm, prompt, 8, found, content.media)
    first = state.logits

    row = GeneratedSequence(STEPS, -1, greedy)
    if known is not None:
        row.on_end = make_keeper(known, "run", content, prompt.slots, row.tokens)
    batch = ContinuousBatch(state, [row])
    while batch.step():
        pass
    return row.tokens, first


def _content(model: SlotModel, sample: Sample) -> Content:
    """As `content_of`, of images that are numbers instead of files."""
    from unittest.mock import patch

    with patch("perceptune.models.slots.model.content", lambda medium: str(medium).encode()):
        return model.content_of(sample)


def turns(model: SlotModel, known: KnownTexts | None) -> list[tuple[list[int], torch.Tensor]]:
    """Three questions: of a photo, of another photo, of none; the answers are the model's own."""
    history: list[Message] = []
    found, media = list[tuple[list[int], torch.Tensor]](), list[int]()
    for text, photo in (("what is it?", 0), ("and this?", 1), ("which is redder?", None)):
        marks = [] if photo is None else [0]
        media += [] if photo is None else [photo]
        tokens, logits = answered(model, asked(text, *media, marks=marks, history=history), known)
        found.append((tokens, logits))
        history += [said("user", text, *marks), said("assistant", model.text.decode(tokens) or "a")]
    return found


def test_a_conversation_is_answered_as_without_reuse(model: SlotModel) -> None:
    known = Counted(64)
    for (tokens, logits), (expected, others) in zip(turns(model, known), turns(model, None), strict=True):
        assert torch.allclose(logits, others, atol=1e-5)
        assert tokens == expected
    assert known.lookups == [False, True, True]


@pytest.mark.parametrize("layout", ["late", "sequential", "cross"])
def test_another_photo_is_another_conversation(layout: str) -> None:
    model, known = talker("llama", layout), Counted(64)
    history = [said("user", "what is it?", 0), said("assistant", "a cat")]
    answered(model, asked("why?", 0, history=history), known)
    tokens, logits = answered(model, asked("why?", 1, history=history), known)
    assert known.lookups == [False, False]
    expected, others = answered(model, asked("why?", 1, history=history), None)
    assert tokens == expected
    assert torch.allclose(logits, others, atol=1e-5)


def test_a_state_that_continues_joins_a_batch() -> None:
    model, known = talker("llama", "late"), KnownTexts(64)
    history = [said("user", "what is it?", 0), said("assistant", "a cat")]
    sample = asked("and now why is it there?", 0, history=history)
    answered(model, asked("why?", 0, history=history), known)
    expected = [answered(model, one, None)[0] for one in (asked("who?", 3), sample)]
    with torch.no_grad():
        found = known.find("run", _content(model, sample).columns)
        assert found is not None
        media = _content(model, sample).media
        states = [
            DecodeState(model.lm, model.prompt([asked("who?", 3)]), 8),
            ContinuedState(model.lm, model.prompt([sample]), 8, found, media),
        ]
        rows = [GeneratedSequence(STEPS, -1, greedy) for _ in states]
        batches = [ContinuousBatch(state, [row]) for state, row in zip(states, rows, strict=True)]
        batches[0].join(batches[1:])
        while batches[0].step():
            pass
    assert [row.tokens for row in rows] == expected


def test_memory_is_bounded_and_the_oldest_text_goes_first() -> None:
    pair = torch.zeros(1, 2, 64, 512)  # 0.25 MiB
    contents = [tuple((number, place) for place in range(64)) for number in range(4)]
    known = KnownTexts(1.5)
    for content in contents[:3]:
        known.keep("run", content, KnownText([(pair, pair)], 64))
    assert known.find("run", (*contents[0], (9, 9))) is not None
    known.keep("run", contents[3], KnownText([(pair, pair)], 64))
    assert known.size <= 1.5 * 2**20
    assert known.find("run", (*contents[1], (9, 9))) is None
    assert known.find("run", (*contents[0], (9, 9))) is not None
    assert known.find("other", (*contents[0], (9, 9))) is None
