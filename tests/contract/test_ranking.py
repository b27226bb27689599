"""Log-probabilities of given continuations: those of a literal forward, a batch as each row alone, one prefix for all.

pytest tests/contract/test_ranking.py
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from answers import generated
from perceptune.lm.architectures import Capabilities
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.generation.logprobs import SharedTexts, continuation_scores
from perceptune.types import Decoding, Features, Prompt, Slots
from rows import Row, every_row, row

# Continuations of each row: of different lengths, one of them the start of another, different numbers of them.
CONTINUATIONS = [[[5, 6, 7], [5], [5, 6]], [[9, 4]], [[8], [7, 7, 7, 7, 2]]]
PRESENT = [True, False, True]


def continuation_logprobs(
    lm: FrozenLM, ids: torch.Tensor, mask: torch.Tensor, slots: Sequence[Slots],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[list[float]]]:  # fmt: skip
    scores = continuation_scores(lm, Prompt(ids, mask, slots), continuations)
    return [[[token.logprob for token in one] for one in own] for own in scores]


def literal(r: Row, ids: Tensor, mask: Tensor, slots: Sequence[Slots], tokens: Sequence[int]) -> list[float]:
    """One row and one continuation through every layer, everything computed."""
    kept = mask[0].bool()
    whole = torch.cat([ids[:, kept], torch.tensor([tokens])], 1)
    logits = r.lm(whole, torch.ones_like(whole), slots, use_reference_path=True)[0].log_softmax(-1)
    start = int(kept.sum())
    return [float(logits[start - 1 + place, token]) for place, token in enumerate(tokens)]


def media_of(image: Features, i: int) -> Features:
    return Features(image.values[i : i + 1], image.present[i : i + 1])


@every_row
@pytest.mark.parametrize("name", ["epalm", "epalm-lin", "epalm@not-last", "depalm-xattn"])
def test_they_are_those_of_a_literal_forward(name: str, family: str) -> None:
    r = row(name, family)
    image = r.media(3, PRESENT)
    ids, mask = r.ids[:3], r.mask[:3]
    with torch.no_grad():
        together = continuation_logprobs(r.lm, ids, mask, r.method.build_slots({"image": image}, 3), CONTINUATIONS)
        for i, own in enumerate(CONTINUATIONS):
            slots = r.method.build_slots({"image": media_of(image, i)}, 1)
            [alone] = continuation_logprobs(r.lm, ids[i : i + 1], mask[i : i + 1], slots, [own])
            for tokens, batched, single in zip(own, together[i], alone, strict=True):
                assert batched == pytest.approx(literal(r, ids[i : i + 1], mask[i : i + 1], slots, tokens), abs=1e-5)
                assert single == pytest.approx(batched, abs=1e-5)


def test_what_cannot_be_split_runs_whole() -> None:
    r = row("epalm", "llama")
    image = r.media(3, PRESENT)
    ids, mask = r.ids[:3], r.mask[:3]
    slots = r.method.build_slots({"image": image}, 3)
    with torch.no_grad():
        fast = continuation_logprobs(r.lm, ids, mask, slots, CONTINUATIONS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(r.lm, "capabilities", Capabilities(split_disabled_reason="for this test"))
            slow = continuation_logprobs(r.lm, ids, mask, slots, CONTINUATIONS)
    for one, two in zip(fast, slow, strict=True):
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_a_prompt_is_computed_once_for_all_its_continuations() -> None:
    r = row("epalm", "llama")
    slots = r.method.build_slots({"image": r.media(3, PRESENT)}, 3)
    seen: list[tuple[int, int]] = []
    embed = r.lm.model.get_input_embeddings()
    hook = embed.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    with torch.no_grad():
        continuation_logprobs(r.lm, r.ids[:3], r.mask[:3], slots, CONTINUATIONS)
    hook.remove()
    assert [rows for rows, width in seen if width > 1] == [3], "the prompts, each once"
    # After the first tokens, which the prompts predict: those with more to come, a common start once.
    assert [rows for rows, width in seen if width == 1] == [3, 2, 1, 1]


@every_row
@pytest.mark.parametrize("name", ["epalm-lin", "epalm@prompt-first"])
def test_equal_texts_share_the_layers_without_media(name: str, family: str) -> None:
    r = row(name, family)
    layer = r.method.first_layer
    assert layer > 0
    image = r.media(4, [True, False, True, True])
    chosen = torch.tensor([0, 0, 1, 0])
    ids, mask = r.ids[chosen], r.mask[chosen]
    slots = r.method.build_slots({"image": image}, 4)
    given = [CONTINUATIONS[i] for i in (0, 0, 2, 2)]
    runs: list[bool] = []
    hook = r.lm.layers[0].register_forward_pre_hook(lambda *_: runs.append(r.lm._stop_at is not None))
    with torch.no_grad():
        plain = continuation_scores(r.lm, Prompt(ids, mask, slots), given)
        runs.clear()
        shared = SharedTexts(r.lm, layer)
        for _ in range(2):
            found = continuation_scores(r.lm, Prompt(ids, mask, slots), given, shared=shared)
    hook.remove()
    for own, others in zip(found, plain, strict=True):
        for one, other in zip(own, others, strict=True):
            assert [token.logprob for token in one] == pytest.approx([token.logprob for token in other], abs=1e-5)
            assert [token.is_greedy for token in one] == [token.is_greedy for token in other]
    # Three different texts: the prompt and the steps after it, of [5, 6, 7] two, of [7, 7, 7, 7, 2] four, twice.
    assert runs.count(True) == (1 + 2) + 2 * (1 + 4)


def test_no_continuations_are_none() -> None:
    r = row("epalm", "llama")
    assert continuation_logprobs(r.lm, r.ids[:2], r.mask[:2], [], [[], []]) == [[], []]


@every_row
def test_greedy_tokens_are_the_likeliest(family: str) -> None:
    """Of what was generated, no single token could be replaced by a likelier one."""
    r = row("epalm", family)
    slots = r.method.build_slots({"image": r.media(3, PRESENT)}, 3)
    ids, mask = r.ids[:3], r.mask[:3]
    answers = generated(r.lm, ids, mask, slots, Decoding(4), eos=-1, pad=0)
    others = [[answer, [*answer[:2], (answer[2] + 1) % 40]] for answer in answers]
    with torch.no_grad():
        found = continuation_scores(r.lm, Prompt(ids, mask, slots), others)
    for best, other in found:
        assert [token.logprob for token in best[:2]] == pytest.approx([token.logprob for token in other[:2]], abs=1e-6)
        assert best[2].logprob > other[2].logprob
        assert all(token.is_greedy for token in best)
        assert [token.is_greedy for token in other] == [True, True, False]
