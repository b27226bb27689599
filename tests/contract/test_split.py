"""What split execution and generation must keep, for every method on every LM family.

pytest tests/contract/test_split.py
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from answers import ending_some, generated, uncached
from perceptune.lm.probe import probe
from perceptune.types import Decoding, Features, Slots
from rows import every_method, every_row, method_names, row

LATE = [name for name in method_names() if row(name, "llama").method.first_layer > 0]


def test_the_matrix_has_methods_that_start_late() -> None:
    assert {"epalm-lin", "epalm@first-injected"} <= set(LATE)


@every_row
@every_method
def test_generation_with_a_cache_equals_full_recomputation(name: str, family: str) -> None:
    r = row(name, family)
    answers = generated(r.lm, r.ids, r.mask, r.plan(), Decoding(8), eos=2, pad=0)
    assert answers == [list(row) for row in uncached(r, r.ids, r.mask, r.plan(), 8)]


@every_row
@every_method
def test_equal_prompts_with_other_media_are_generated_like_different_ones(name: str, family: str) -> None:
    """They share the layers below the first medium; some rows have none, and rows end at different times."""
    r = row(name, family)
    order = torch.tensor([0, 1, 0, 2, 1, 0])
    ids, mask = r.ids[order], r.mask[order]
    features = {"image": r.media(6, [True, True, True, False, True, False])}
    slots = r.method.build_slots(features, 6)
    endless = uncached(r, ids, mask, slots, 8, -1)
    eos = ending_some(endless)
    expected = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in endless]
    assert generated(r.lm, ids, mask, slots, Decoding(8), eos=eos, pad=0) == expected


@every_row
@every_method
@pytest.mark.parametrize("present", [[True, True, True], [True, False, True], [False, False, False]])
def test_split_execution_equals_the_plain_path(name: str, family: str, present: list[bool]) -> None:
    """Logits and every gradient, with some rows without a medium, and only some positions supervised."""
    results = []
    for plain in (True, False):
        r = row(name, family)
        keep = torch.zeros_like(r.mask, dtype=torch.bool)
        keep[:, -3:-1] = True
        slots = r.plan({"image": Features(r.features["image"].values, torch.tensor(present))})
        r.lm.capabilities = probe(r.lm)
        assert r.lm.capabilities.split_disabled_reason is None, "else both are the plain path"
        logits = r.lm(r.ids, r.mask, slots, keep=keep, use_reference_path=plain)
        targets = r.ids[:, -2:].flatten()
        loss = r.lm.loss(r.ids, r.mask, slots, keep=keep, targets=targets, use_reference_path=plain)
        expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        assert torch.allclose(loss, expected, rtol=1e-6)
        if loss.requires_grad:
            loss.backward()
        results.append((logits, [p.grad for p in r.method.parameters()]))
    (full, gradients), (split, others) = results
    assert torch.allclose(full, split, atol=1e-5, rtol=1e-5)
    assert [g is None for g in gradients] == [g is None for g in others]
    for one, other in zip(gradients, others, strict=True):
        if one is not None and other is not None:
            scale = one.abs().max().clamp_min(1.0)
            assert (one - other).abs().max() / scale < 1e-5


@every_row
def test_every_family_is_split_and_its_head_is_used_as_it_is(family: str) -> None:
    lm = row("epalm", family).lm
    lm.capabilities = probe(lm)
    assert lm.capabilities.split_disabled_reason is None
    assert lm.capabilities.has_bare_head == (family != "gemma2")  # which caps its logits after the head


def test_an_lm_that_cannot_be_split_says_so_and_runs_the_plain_path() -> None:
    r = row("epalm", "llama")
    before, seen = r.logits(), r.mask.bool()
    below = [r.lm.hidden_states_at(2, r.ids, r.mask, slots)[seen] for slots in ([], r.plan())]
    for layer in r.lm.layers:  # an attention that never asks for a cache
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, past_key_values=None, forward=forward, **k: forward(*a, **k)
    r.lm.capabilities = probe(r.lm)
    assert r.lm.capabilities.split_disabled_reason is not None
    assert "keys and values" in r.lm.capabilities.split_disabled_reason
    assert torch.allclose(r.logits(), before, atol=1e-5)
    for slots, states in zip(([], r.plan()), below, strict=True):
        assert torch.allclose(r.lm.hidden_states_at(2, r.ids, r.mask, slots)[seen], states, atol=1e-5)
    assert generated(r.lm, r.ids, r.mask, r.plan(), Decoding(1), eos=2, pad=0)


def test_logits_that_are_capped_after_the_head_are_noticed() -> None:
    r = row("epalm", "gemma3")
    r.lm.config.final_logit_softcapping = 3.0
    r.lm.capabilities = probe(r.lm)
    assert not r.lm.capabilities.has_bare_head
    keep = torch.zeros_like(r.mask, dtype=torch.bool)
    keep[:, -2] = True
    loss = r.lm.loss(r.ids, r.mask, r.plan(), keep=keep, targets=r.ids[:, -1])
    logits = r.lm(r.ids, r.mask, r.plan(), keep=keep)
    assert logits.abs().max() <= 3.0
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits, r.ids[:, -1], reduction="sum"))


@every_row
@every_method
def test_what_split_execution_leaves_out(name: str, family: str) -> None:
    """Counted in rows of the last feed-forward map: no slot that is overwritten, last token or unsupervised query."""
    r = row(name, family)
    seen: list[tuple[int, int]] = []
    for layer in range(r.lm.n_layers):
        _, module = r.lm.site(layer, "mlp")
        module.register_forward_hook(lambda _, __, out, layer=layer: seen.append((layer, out.numel() // out.shape[-1])))
    keep = torch.zeros_like(r.mask, dtype=torch.bool)
    keep[:, -3:-1] = True
    r.lm(r.ids, r.mask, r.plan(), keep=keep)
    rows, length = r.ids.shape
    last = r.lm.n_layers - 1
    assert [n for layer, n in seen if layer == last] == [rows * 2]
    extra = sum(n for layer, n in seen if layer < last) - rows * (length - 1) * last
    assert extra == expected_extra(r.plan(), rows, last)


def expected_extra(slots: Sequence[Slots], rows: int, last: int) -> int:
    """Slot columns that must run through a block below the last: those whose state is not overwritten after it.

    Once for the batch, unless the state differs by row: it did so when it was written, or a column on its left does.
    """
    extra, differs = 0, set()  # (slot, layer) whose state differs by row when it enters the layer
    for index, slot in enumerate(slots):
        for layer in range(slot.entry, last if slot.in_front else 0):
            if layer in slot.states and slot.states[layer].shape[0] > 1:
                differs.add((index, layer))
            if layer + 1 in slot.states:
                continue
            by_row = any((other, layer) in differs for other in range(index + 1))
            if by_row:
                differs.add((index, layer + 1))
            extra += slot.states[slot.entry].shape[1] * (rows if by_row else 1)
    return extra


@every_row
@pytest.mark.parametrize("name", LATE)
def test_layers_below_the_first_are_not_needed(name: str, family: str) -> None:
    """The method's own statement of what lies below it holds: states computed without it give the same result."""
    r = row(name, family)
    layer = r.method.first_layer
    below = (layer, r.lm.hidden_states_at(layer, r.ids, r.mask))
    difference = r.lm(r.ids, r.mask, r.plan(), text_states=below) - r.logits()
    assert difference[r.mask.bool()].abs().max() < 1e-5
