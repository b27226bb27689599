"""Rows that come later go on with those that are there: each says what it says alone.

pytest tests/contract/test_joining.py
"""

from __future__ import annotations

import random

import pytest
import torch

from answers import ending_some, generated
from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.generation.generate import ContinuousBatch, GeneratedSequence
from perceptune.lm.generation.sampling import make_sampler
from perceptune.types import Decoding, Features, GenerationRequest, Prompt
from rows import every_row, row

GREEDY, DRAWN = Decoding(40), Decoding(40, sample=True, temperature=0.7, top_p=0.8)


class Asked:
    """Questions of different lengths, with and without a medium, of two methods on one LM."""

    def __init__(self, family: str) -> None:
        self.matrix = row("epalm", family)
        self.lm = self.matrix.lm
        other = row("epalm", family).method  # as another run of the same method: its own weights
        for parameter in other.parameters():
            parameter.data += torch.randn_like(parameter) * 0.3
        self.methods = [self.matrix.method, other]
        chance = random.Random(1)
        self.texts = [torch.randint(4, 60, (chance.randint(2, 9),)) for _ in range(8)]
        self.media = self.matrix.media(8, [i != 3 for i in range(8)])
        free = [self.alone(i, Decoding(10), eos=-1) for i in range(8)]
        self.eos = ending_some(free)
        self.most = [chance.choice([2, 5, 9, 14]) for _ in range(8)]

    def begin(self, which: list[int], decoding: Decoding, eos: int) -> ContinuousBatch:
        """A group of some of them, all of the same parity: those are of one method."""
        longest = max(len(self.texts[i]) for i in which)
        ids = torch.stack([torch.nn.functional.pad(self.texts[i], (longest - len(self.texts[i]), 0)) for i in which])
        mask = torch.stack([(torch.arange(longest) >= longest - len(self.texts[i])).long() for i in which])
        features = Features(self.media.values[which], torch.ones(len(which), dtype=torch.bool))
        features.present[:] = self.media.present[which]
        slots = self.methods[which[0] % 2].build_slots({"image": features}, len(which))
        request = GenerationRequest(Prompt(ids, mask, slots), decoding, eos=eos, pad=0, seeds=[100 + i for i in which])
        choose = make_sampler(request, ids.device)
        rows = [
            GeneratedSequence(self.most[i] if eos >= 0 else 10, eos, choose, number) for number, i in enumerate(which)
        ]
        return ContinuousBatch(DecodeState(self.lm, request.prompt, 3), rows)

    def alone(self, i: int, decoding: Decoding, eos: int) -> list[int]:
        going = self.begin([i], decoding, eos)
        while going.step():
            pass
        return going.rows[0].tokens


@every_row
@torch.no_grad()
def test_rows_that_join_say_what_they_say_alone(family: str) -> None:
    """Of two methods, greedy and drawn, at several moments, while others leave."""
    asked = Asked(family)
    how = {i: DRAWN if i in (2, 5) else GREEDY for i in range(8)}
    expected = {i: asked.alone(i, how[i], asked.eos) for i in range(8)}
    assert len({tuple(tokens) for tokens in expected.values()}) > 5
    chance = random.Random(family)
    for _ in range(3):
        coming = [[0, 4], [1, 3, 7], [2], [5], [6]]  # 3 has no medium
        chance.shuffle(coming)
        waiting = [asked.begin(which, how[which[0]], asked.eos) for which in coming]
        rows = {i: one for w, going in zip(coming, waiting, strict=True) for i, one in zip(w, going.rows, strict=True)}
        going = waiting.pop()
        while going.step():
            if waiting and chance.random() < 0.5:
                going.join([waiting.pop() for _ in range(min(len(waiting), chance.choice([1, 2])))])
        for late in waiting:
            while late.step():
                pass
        assert {i: one.tokens for i, one in rows.items()} == {i: expected[i] for i in rows}


@torch.no_grad()
def test_columns_that_nobody_sees_are_left_behind() -> None:
    """However long a group goes on, it holds no more columns than its rows need."""
    asked = Asked("llama")
    asked.most = [6] * 8
    going, widest = asked.begin([0], GREEDY, 10_000), 0
    for turn in range(40):
        going.step()
        going.join([asked.begin([(2 * turn) % 8], GREEDY, 10_000)])
        widest = max(widest, going.state.cache.length)
    assert going.num_active <= 7
    slots = sum(width for _, width in going.state.layout)
    assert widest <= slots + max(map(len, asked.texts)) + 6


@torch.no_grad()
def test_a_cache_grows_when_it_is_full() -> None:
    asked = Asked("llama")
    asked.most = [200] * 8
    short = asked.begin([0], GREEDY, 10_000)
    while short.step():
        pass
    ids = asked.texts[0][None]
    slots = asked.methods[0].build_slots({"image": Features(asked.media.values[:1], asked.media.present[:1])}, 1)
    whole = generated(asked.lm, ids, torch.ones_like(ids), slots, Decoding(200), eos=10_000, pad=0)
    assert short.rows[0].tokens == whole[0]
    assert len(whole[0]) == 200


@torch.no_grad()
def test_other_layouts_are_refused() -> None:
    asked, other = Asked("llama"), Asked("llama")
    going = asked.begin([0], GREEDY, -1)
    with pytest.raises(ValueError, match="cannot be joined"):
        going.join([other.begin([0], GREEDY, -1)])  # another LM
    with pytest.raises(ValueError, match="cannot be joined"):
        going.join([asked.begin([3], GREEDY, -1)])  # it has no medium, hence no column


@torch.no_grad()
def test_rows_that_have_ended_need_no_positions() -> None:
    """A row that filled the LM's positions and stays beside many others does not make them fail."""
    asked = Asked("opt")
    room = asked.lm.config.max_position_embeddings
    asked.texts[0] = torch.randint(4, 60, (room - 1,))
    asked.most, which = [1, 1, 9, 9, 9, 9, 9, 9], [0, 2, 4, 6, 2, 4]
    expected = {i: asked.alone(i, GREEDY, 10_000) for i in which}
    going = asked.begin(which, GREEDY, 10_000)
    rows = list(going.rows)
    while going.step():
        pass
    assert [one.tokens for one in rows] == [expected[i] for i in which]
