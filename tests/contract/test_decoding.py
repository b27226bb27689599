"""Greedy decoding, beams and sampling: the tokens of transformers' own loops, a batch as each row alone.

pytest tests/contract/test_decoding.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from answers import beams_by_total_length, ending_some, generated, transformers_own, uncached
from perceptune.errors import UserError
from perceptune.lm.architectures import Capabilities
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.types import Decoding, Features, Slots
from rows import Row, every_row, row

SEARCHES = [(1, 1.0), (2, 1.0), (3, 0.0), (3, 2.0), (4, -1.0), (5, 1.0)]
DRAWN: dict[str, Any] = {"sample": True, "temperature": 0.7, "top_p": 0.8}


class Asked:
    """Six questions, some of them equal, some without a medium, and a token that ends some answers before others."""

    def __init__(self, r: Row) -> None:
        self.r = r
        order = torch.tensor([0, 1, 0, 2, 1, 0])
        self.ids, self.mask = r.ids[order], r.mask[order]
        self.image = r.media(6, [True, True, True, False, True, False])
        self.slots = r.method.build_slots({"image": self.image}, 6)
        greedy = generated(r.lm, self.ids, self.mask, self.slots, Decoding(8), eos=-1, pad=0)
        self.eos = ending_some(greedy)

    def answers(self, decoding: Decoding, **given: Any) -> list[list[int]]:
        return generated(self.r.lm, self.ids, self.mask, self.slots, decoding, eos=self.eos, pad=0, **given)

    def alone(self, i: int) -> tuple[torch.Tensor, torch.Tensor, list[Slots]]:
        """Question i without padding."""
        start = int((self.mask[i] == 0).sum())
        image = Features(self.image.values[i : i + 1], self.image.present[i : i + 1])
        slots = self.r.method.build_slots({"image": image}, 1)
        return self.ids[i : i + 1, start:], self.mask[i : i + 1, start:], slots


@every_row
def test_greedy_and_beams_are_those_of_transformers(family: str) -> None:
    """Token for token, whatever the length penalty, with rows that end early."""
    asked = Asked(row("epalm", family))
    found = {}
    for beams, penalty in SEARCHES:
        decoding = Decoding(8, beams=beams, length_penalty=penalty)
        found[beams, penalty] = asked.answers(decoding)
        expected = transformers_own(asked.r, asked.ids, asked.mask, asked.slots, decoding, asked.eos)
        assert found[beams, penalty] == expected, (beams, penalty)
    assert found[3, 0.0] != found[1, 1.0], "beams find something else"


@pytest.mark.parametrize("split_disabled", [None, "a test"])
def test_all_beams_are_those_of_transformers(split_disabled: str | None) -> None:
    """Best first, each row's one after another, with rows that end early and limits of their own."""
    asked = Asked(row("epalm", "llama"))
    asked.r.lm.capabilities = Capabilities(split_disabled_reason=split_disabled)
    for decoding in (Decoding(8, beams=3), Decoding(max_length=13, beams=4, length_penalty=0.0)):
        found = asked.answers(decoding, num_return_sequences=3)
        assert found[::3] == asked.answers(decoding)
        for i in range(6):
            ids, mask, slots = asked.alone(i)
            room = decoding if decoding.max_length is None else Decoding(max(1, 13 - ids.shape[1]), beams=4,
                                                                         length_penalty=0.0)  # fmt: skip
            three = generated(asked.r.lm, ids, mask, slots, room, eos=asked.eos, pad=0, num_return_sequences=3)
            assert found[3 * i : 3 * i + 3] == three
            assert len({tuple(one) for one in three}) == 3
            asked.r.lm.capabilities = Capabilities(split_disabled_reason="a test" if split_disabled is None else None)
            assert generated(asked.r.lm, ids, mask, slots, room, eos=asked.eos, pad=0, num_return_sequences=3) == three
            asked.r.lm.capabilities = Capabilities(split_disabled_reason=split_disabled)


def test_the_length_penalty_matters() -> None:
    asked = Asked(row("epalm", "llama"))
    lengths = [sum(map(len, asked.answers(Decoding(8, beams=4, length_penalty=p)))) for p in (-4.0, 4.0)]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(("slot_mask", "split_disabled"), [("causal", None), ("official", None), ("causal", "a test")])
def test_beams_by_the_length_of_prompt_and_answer(slot_mask: str, split_disabled: str | None) -> None:
    """Token for token a literal search by the old rule, each row as alone; it answers otherwise than today's."""
    asked = Asked(row("epalm@not-last", "opt", slot_mask=slot_mask))
    asked.r.lm.capabilities = Capabilities(split_disabled_reason=split_disabled)
    others = 0
    for eos in {asked.eos, *range(4, 12)}:
        asked.eos = eos
        for beams, penalty in [(3, 1.0), (2, 4.0), (3, 0.0), (2, -2.0)]:
            decoding = Decoding(5, beams=beams, length_penalty=penalty, length_normalization="total")
            found = asked.answers(decoding)
            expected = [beams_by_total_length(asked.r, *asked.alone(i), decoding, eos, 5) for i in range(6)]
            assert found == expected, (eos, beams, penalty)
            others += found != asked.answers(replace(decoding, length_normalization="answer"))
    assert others > 3


def test_the_old_rule_with_a_length_of_prompt_and_answer_together() -> None:
    asked = Asked(row("epalm@not-last", "opt", slot_mask="official"))
    decoding = Decoding(max_length=12, beams=3, length_normalization="total")
    rows = [asked.alone(i) for i in range(6)]
    limits = [max(1, 12 - ids.shape[1]) for ids, _, _ in rows]
    expected = [
        beams_by_total_length(asked.r, *row, decoding, asked.eos, n) for row, n in zip(rows, limits, strict=True)
    ]
    assert asked.answers(decoding) == expected


def test_the_old_rule_is_refused_where_transformers_own_loop_searches() -> None:
    asked = Asked(row("epalm", "llama"))
    decoding = Decoding(8, beams=2, length_normalization="total", min_new_tokens=2)
    with pytest.raises(UserError, match="length_normalization"):
        asked.answers(decoding)


@every_row
def test_a_batch_draws_what_transformers_draws_for_each_row_alone(family: str) -> None:
    asked = Asked(row("epalm", family))
    seeds = [11, 12, 13, 14, 15, 11]
    asked.eos = -1
    asked.eos = ending_some(asked.answers(Decoding(8, **DRAWN), seeds=seeds))  # rows that have ended leave the others
    together = asked.answers(Decoding(8, **DRAWN), seeds=seeds)
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        assert transformers_own(asked.r, *asked.alone(i), Decoding(8, **DRAWN), asked.eos) == [together[i]]
    assert together != asked.answers(Decoding(8, **DRAWN), seeds=[seed + 1 for seed in seeds])


@pytest.mark.parametrize("split_disabled", [None, "a test"])
def test_several_samples_of_a_prompt_are_those_of_as_many_rows(split_disabled: str | None) -> None:
    """They share its prefill; each ends by itself, and has the row's limit."""
    asked = Asked(row("epalm", "llama"))
    asked.r.lm.capabilities = Capabilities(split_disabled_reason=split_disabled)
    order = torch.arange(6).repeat_interleave(3)
    for room in ({"max_new_tokens": 8}, {"max_length": 13}):
        decoding, seeds = Decoding(**room, **DRAWN), [*range(18)]
        rows = [slot.of_rows(order) for slot in asked.slots]
        expected = generated(
            asked.r.lm, asked.ids[order], asked.mask[order], rows, decoding, eos=asked.eos, pad=0, seeds=seeds
        )
        assert asked.answers(decoding, seeds=seeds, num_return_sequences=3) == expected
        assert len({*map(tuple, expected[:3])}) > 1, "they differ"
    without = asked.answers(Decoding(8, seed=5, **DRAWN), num_return_sequences=3)
    assert without == asked.answers(Decoding(8, **DRAWN), seeds=[5, 6, 7] * 6, num_return_sequences=3)


def test_a_prompt_of_several_samples_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, prefill, rows = Asked(row("epalm", "llama")), FrozenLM.prefill, list[int]()

    def counted(lm: FrozenLM, ids: torch.Tensor, *given: Any, **more: Any) -> Any:
        rows.append(len(ids))
        return prefill(lm, ids, *given, **more)

    monkeypatch.setattr(FrozenLM, "prefill", counted)
    assert len(asked.answers(Decoding(8, **DRAWN), num_return_sequences=5)) == 30
    assert rows == [6]


def test_without_seeds_every_row_draws_with_that_of_the_decoding() -> None:
    asked = Asked(row("epalm", "llama"))
    state = torch.get_rng_state()
    drawn = [asked.answers(Decoding(8, seed=seed, **DRAWN)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are used up"


@pytest.mark.parametrize("slot_mask", ["causal", "official"])
@pytest.mark.parametrize("how", [{}, {"beams": 3}, DRAWN], ids=["greedy", "beams", "sampled"])
def test_prompt_and_answer_share_the_length(how: dict[str, Any], slot_mask: str) -> None:
    """`max_length` counts the row's own tokens, neither slots nor padding; a prompt that fills it gets one token."""
    asked = Asked(row("epalm@not-last", "opt", slot_mask=slot_mask))
    together = asked.answers(Decoding(max_length=10, **how), seeds=[7] * 6)
    for i in range(6):
        ids, mask, slots = asked.alone(i)
        room = max(1, 10 - ids.shape[1])
        decoding = Decoding(room, **how)
        assert generated(asked.r.lm, ids, mask, slots, decoding, eos=asked.eos, pad=0, seeds=[7]) == [together[i]]
    asked.eos = -1
    assert [len(tokens) for tokens in asked.answers(Decoding(max_length=10, **how))] == [1, 4, 1, 1, 4, 1]


def test_the_official_mask_generates_as_full_recomputation() -> None:
    """It has no cache: the slot's state changes with every token."""
    r = row("epalm@not-last", "opt", slot_mask="official")
    greedy = generated(r.lm, r.ids, r.mask, r.plan(), Decoding(8), eos=2, pad=0)
    assert greedy == uncached(r, r.ids, r.mask, r.plan(), 8)


@pytest.mark.parametrize("how", [{"beams": 3}, DRAWN], ids=["beams", "sampled"])
def test_an_lm_that_cannot_be_split_answers_the_same(how: dict[str, Any]) -> None:
    asked = Asked(row("epalm", "llama"))
    expected = asked.answers(Decoding(8, **how), seeds=[3, 4, 5, 6, 7, 8])
    asked.r.lm.capabilities = Capabilities(split_disabled_reason="a test")
    assert asked.answers(Decoding(8, **how), seeds=[3, 4, 5, 6, 7, 8]) == expected
