"""What every method must keep, on every LM family. A new method inherits all of it by existing.

pytest tests/contract/test_methods.py
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from perceptune.generation import with_transformers
from perceptune.types import Decoding, Features, Slots
from rows import FAMILIES, SHAPE, absent, method_names, random_features, row
from support import random_lm

every_row = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("name", method_names())


def test_the_matrix_is_as_large_as_it_claims() -> None:
    assert len(FAMILIES) >= 5
    assert {"epalm", "epalm-pt", "epalm-lin", "epalm-ada", "epalm-pt-l"} <= set(method_names())
    assert len(method_names()) >= 10
    assert {"epalm-lin", "epalm-lin@whole-range"} <= set(CONNECTOR_ONLY)
    assert {"epalm-lin", "epalm@first-injected"} <= set(LATE)


@every_row
@every_method
def test_training_moves_the_method_and_not_one_frozen_bit(name: str, family: str) -> None:
    r = row(name, family)
    before = copy.deepcopy(r.lm.model.state_dict())
    method_before = copy.deepcopy(dict(r.method.named_parameters()))
    optimizer = torch.optim.AdamW(r.method.parameters(), lr=1e-2)
    for _ in range(2):
        logits = r.logits()[:, -4:-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), r.ids[:, -3:].flatten()).backward()
        optimizer.step()
        assert all(p.grad is None for p in r.lm.parameters())
        optimizer.zero_grad()
    after = r.lm.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(before[key], after[key]) for key in before)
    # Everything owned is trained: a parameter that never moves has no business in the optimizer.
    still = [key for key, p in r.method.named_parameters() if torch.equal(p, method_before[key])]
    assert still == []


HIDDEN, BOTTLENECK, LAYERS = 32, 32 // 8, 4
MAP = SHAPE.dim * HIDDEN + HIDDEN
ADAPTERS = LAYERS * 2 * (2 * HIDDEN * BOTTLENECK + BOTTLENECK + HIDDEN)


def expected_count(name: str, prompt_size: int) -> int:
    """From the paper's description, not from the code: connections + soft prompt + adapters."""
    plain, mlp = 10 * prompt_size, 10 * prompt_size + 2 * (prompt_size * prompt_size + prompt_size)
    return {
        "epalm": 2 * MAP + mlp,
        "epalm-pt": MAP + mlp,
        "epalm-lin": MAP,
        "epalm-ada": 2 * MAP + ADAPTERS,
        "epalm-pt-l": MAP + plain,
        "epalm@first-injected": 2 * MAP + 10 * HIDDEN,
        "epalm@prompt-first": 2 * MAP + 10 * HIDDEN,
        "epalm@not-last": 2 * MAP + mlp,
        "epalm-lin@whole-range": MAP,
        "epalm+adapters": 2 * MAP + mlp + ADAPTERS,
    }[name]


@every_row
@every_method
def test_what_is_trained_is_exactly_the_method(name: str, family: str) -> None:
    r = row(name, family)
    assert sum(p.numel() for p in r.method.parameters()) == expected_count(name, r.lm.prompt_size)
    assert all(p.requires_grad for p in r.method.parameters())
    assert not any(p.requires_grad for p in r.lm.parameters())
    grouped = [p for group in r.method.param_groups() for _, p in group["named"]]
    assert {id(p) for p in grouped} == {id(p) for p in r.method.parameters()}
    assert len(grouped) == len(list(r.method.parameters()))


@every_row
@every_method
def test_without_media_only_the_text_side_acts(name: str, family: str) -> None:
    r = row(name, family)
    r.lm.model.double()  # so that 1e-6 speaks of the mathematics, not of rounding
    seen = r.mask.bool()
    bare = r.lm(r.ids, r.mask, [slot for slot in r.plan() if slot.name == "prompt"])
    assert (r.logits(features=absent(r.features)) - bare)[seen].abs().max() <= 1e-6
    assert (r.logits(features={}) - bare)[seen].abs().max() <= 1e-6
    mixed = Features(r.features["image"].values, torch.tensor([True, False, True]))
    assert (r.logits(features={"image": mixed})[1] - bare[1])[seen[1]].abs().max() <= 1e-6
    assert (r.logits() - bare)[seen].abs().max() > 1e-3  # and with media it does act


CONNECTOR_ONLY = [name for name in method_names() if not list(row(name, "llama").method.text_side())]
LATE = [name for name in method_names() if row(name, "llama").method.first_layer > 0]


@every_row
@pytest.mark.parametrize("name", CONNECTOR_ONLY)
def test_a_connector_alone_leaves_the_bare_lm_as_it_is(name: str, family: str) -> None:
    r = row(name, family)
    r.lm.model.double()  # so that 1e-6 speaks of the mathematics, not of rounding
    positions = (r.mask.cumsum(-1) - 1).clamp_min(0)
    bare = random_lm(family).double()(input_ids=r.ids, attention_mask=r.mask, position_ids=positions).logits
    assert (r.logits(features={}) - bare)[r.mask.bool()].abs().max() <= 1e-6


@every_row
@every_method
def test_a_later_token_moves_no_earlier_logit(name: str, family: str) -> None:
    r = row(name, family)
    changed = r.ids.clone()
    changed[:, -1] = (changed[:, -1] + 1 - 4) % 50 + 4
    difference = (r.logits(ids=changed) - r.logits())[:, :-1][r.mask.bool()[:, :-1]]
    assert difference.abs().max() == 0
    assert (r.logits(ids=changed) - r.logits())[:, -1].abs().max() > 1e-3


@every_row
@every_method
def test_generation_with_a_cache_equals_full_recomputation(name: str, family: str) -> None:
    r = row(name, family)
    generated = r.lm.generate(r.ids, r.mask, r.plan(), Decoding(8), eos=2, pad=0)
    assert generated == [list(row) for row in uncached(r, r.ids, r.mask, r.plan(), 8)]


@every_row
@every_method
def test_equal_prompts_with_other_media_are_generated_like_different_ones(name: str, family: str) -> None:
    """They share the layers below the first medium; some rows have none, and rows end at different times."""
    r = row(name, family)
    order = torch.tensor([0, 1, 0, 2, 1, 0])
    ids, mask = r.ids[order], r.mask[order]
    features = {"image": random_features(6, [True, True, True, False, True, False])}
    slots = r.method.plan(features, 6)
    endless = uncached(r, ids, mask, slots, 8, -1)
    eos = ending_some(endless)
    expected = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in endless]
    assert r.lm.generate(ids, mask, slots, Decoding(8), eos=eos, pad=0) == expected


@every_row
@every_method
def test_a_ragged_batch_answers_as_each_alone(name: str, family: str) -> None:
    r = row(name, family)
    for beams in (1, 3):
        together = r.lm.generate(r.ids, r.mask, r.plan(), Decoding(6, beams=beams), eos=2, pad=0)
        for i in range(3):
            start = int((r.mask[i] == 0).sum())
            ids, mask = r.ids[i : i + 1, start:], r.mask[i : i + 1, start:]
            image = r.features["image"]
            one = {"image": Features(image.values[i : i + 1], image.present[i : i + 1])}
            alone = r.lm.generate(ids, mask, r.method.plan(one, 1), Decoding(6, beams=beams), eos=2, pad=0)
            assert alone[0] == together[i], f"{beams} beams, row {i}"


@every_row
@every_method
def test_mixed_rows_answer_as_each_alone(name: str, family: str) -> None:
    r = row(name, family)
    mixed = random_features(3, [True, False, True])
    together = r.lm.generate(r.ids, r.mask, r.method.plan({"image": mixed}, 3), Decoding(6), eos=2, pad=0)
    ids, mask = r.ids[1:2, 5:], r.mask[1:2, 5:]
    assert r.lm.generate(ids, mask, r.method.plan({}, 1), Decoding(6), eos=2, pad=0)[0] == together[1]


@every_row
@every_method
def test_bfloat16_stays_finite_and_near(name: str, family: str) -> None:
    r = row(name, family)
    exact = r.logits().float()
    r.lm.model.to(torch.bfloat16)
    rough = r.logits().float()
    assert torch.isfinite(rough).all()
    assert (rough - exact)[r.mask.bool()].abs().mean() < 0.15 * exact[r.mask.bool()].abs().mean()
    assert all(p.dtype == torch.float32 for p in r.method.parameters())


@every_row
@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gradient_checkpointing_changes_nothing(name: str, family: str, dtype: torch.dtype) -> None:
    gradients = []
    for on in (False, True):
        r = row(name, family)
        r.lm.model.to(dtype)
        r.lm.gradient_checkpointing = on
        r.logits()[r.mask.bool()].pow(2).mean().backward()
        gradients.append([p.grad.clone() for p in r.method.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, saved in zip(*gradients, strict=True):
        assert torch.allclose(plain, saved, atol=1e-6, rtol=1e-5)


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
        r.lm.check()
        logits = r.lm(r.ids, r.mask, slots, keep=keep, plain=plain)
        targets = r.ids[:, -2:].flatten()
        loss = r.lm.loss(r.ids, r.mask, slots, keep=keep, targets=targets, plain=plain)
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
    lm.check()
    assert lm.no_split is None
    assert lm.bare_head


def test_an_lm_that_cannot_be_split_says_so_and_runs_the_plain_path() -> None:
    r = row("epalm", "llama")
    before, seen = r.logits(), r.mask.bool()
    below = [r.lm.states_at(2, r.ids, r.mask, slots)[seen] for slots in ([], r.plan())]
    for layer in r.lm.layers:  # an attention that never asks for a cache
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, past_key_values=None, forward=forward, **k: forward(*a, **k)
    r.lm.check()
    assert r.lm.no_split is not None
    assert "keys and values" in r.lm.no_split
    assert torch.allclose(r.logits(), before, atol=1e-5)
    for slots, states in zip(([], r.plan()), below, strict=True):
        assert torch.allclose(r.lm.states_at(2, r.ids, r.mask, slots)[seen], states, atol=1e-5)
    assert r.lm.generate(r.ids, r.mask, r.plan(), Decoding(1), eos=2, pad=0)


def test_logits_that_are_capped_after_the_head_are_noticed() -> None:
    r = row("epalm", "gemma3")
    r.lm.config.final_logit_softcapping = 3.0
    r.lm.check()
    assert not r.lm.bare_head
    keep = torch.zeros_like(r.mask, dtype=torch.bool)
    keep[:, -2] = True
    loss = r.lm.loss(r.ids, r.mask, r.plan(), keep=keep, targets=r.ids[:, -1])
    logits = r.lm(r.ids, r.mask, r.plan(), keep=keep)
    assert logits.abs().max() <= 3.0
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits, r.ids[:, -1], reduction="sum"))


@every_row
@every_method
def test_what_split_execution_leaves_out(name: str, family: str) -> None:
    """Counted in calls of the last feed-forward map: no slot column that is overwritten, no unsupervised last query."""
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
    extra = sum(n for layer, n in seen if layer < last) - rows * length * last
    assert extra == expected_extra(name, rows)


def expected_extra(name: str, rows: int) -> int:
    """Slot columns that must run through a block: the prompt, once below the image's layer, then in each row."""
    if name == "epalm@first-injected":
        return 1 * 10 * rows  # layer 2 of 2, 3: behind the image
    if name == "epalm@prompt-first":
        return 1 * 10
    if name == "epalm@not-last":  # image in 1, 2; its last state goes on into 3; prompt in 0 alone, in 1, 2 by row
        return 10 + 2 * 10 * rows + rows
    if name in ("epalm-lin", "epalm-ada", "epalm-lin@whole-range"):
        return 0
    return 2 * 10 + 10 * rows  # the prompt at the input: layers 0, 1 once, layer 2 behind the image


@every_row
@pytest.mark.parametrize("name", LATE)
def test_layers_below_the_first_are_not_needed(name: str, family: str) -> None:
    """The method's own statement of what lies below it holds: states computed without it give the same result."""
    r = row(name, family)
    layer = r.method.first_layer
    below = (layer, r.lm.states_at(layer, r.ids, r.mask))
    difference = r.lm(r.ids, r.mask, r.plan(), text_states=below) - r.logits()
    assert difference[r.mask.bool()].abs().max() < 1e-5


@every_method
def test_eager_attention_is_the_same(name: str) -> None:
    for family in FAMILIES:
        a, b = row(name, family).logits(), row(name, family, attention="eager").logits()
        seen = row(name, family).mask.bool()
        assert (a - b)[seen].abs().max() < 1e-4, family


@every_row
def test_the_kept_positions_are_those_of_the_full_logits(family: str) -> None:
    r = row("epalm", family)
    keep = torch.rand(r.ids.shape) < 0.4
    assert torch.allclose(r.lm(r.ids, r.mask, r.plan(), keep=keep), r.logits()[keep], atol=1e-5)


@every_row
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("sampling", [{}, {"sample": True, "temperature": 0.7, "top_p": 0.8}])
def test_generation_is_that_of_transformers(family: str, beams: int, sampling: dict[str, object]) -> None:
    """Token for token, from the same random numbers, with rows that end early."""
    r = row("epalm", family)
    order = torch.tensor([0, 1, 0, 2])
    ids, mask = r.ids[order], r.mask[order]
    slots = r.method.plan({"image": random_features(4)}, 4)
    decoding = Decoding(8, beams=beams, **sampling)  # type: ignore[arg-type]
    eos = ending_some(r.lm.generate(ids, mask, slots, Decoding(8), eos=-1, pad=0))
    answers = []
    for generate in (r.lm.generate, partial(with_transformers, r.lm)):
        torch.manual_seed(5)
        with torch.no_grad():
            answers.append(generate(ids, mask, slots, decoding, eos=eos, pad=0))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("slot_mask", ["causal", "official"])
def test_sampling_is_seeded_and_the_official_mask_generates(slot_mask: str) -> None:
    """The official mask has no cache: generation must equal the full recomputation all the same."""
    r = row("epalm@not-last", "opt", slot_mask=slot_mask)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(r.lm.generate(r.ids, r.mask, r.plan(), Decoding(8, sample=True, top_p=0.9), eos=2, pad=0))
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = r.lm.generate(r.ids, r.mask, r.plan(), Decoding(8), eos=2, pad=0)
    assert greedy == uncached(r, r.ids, r.mask, r.plan(), 8)


def test_two_modalities_in_one_batch_answer_as_each_alone() -> None:
    """Each encoder owns a column; a row opens those it has."""
    r = row("epalm", "llama", shapes={"image": SHAPE, "audio": SHAPE})
    image, audio = random_features(3, [True, False, True]), random_features(3, [False, True, True])
    both = {"image": image, "audio": audio}
    together = r.lm.generate(r.ids, r.mask, r.method.plan(both, 3), Decoding(6), eos=2, pad=0)
    for i in range(3):
        start = int((r.mask[i] == 0).sum())
        one = {name: Features(f.values[i : i + 1], f.present[i : i + 1]) for name, f in both.items() if f.present[i]}
        ids, mask = r.ids[i : i + 1, start:], r.mask[i : i + 1, start:]
        assert r.lm.generate(ids, mask, r.method.plan(one, 1), Decoding(6), eos=2, pad=0)[0] == together[i]
    without = r.lm(r.ids, r.mask, r.method.plan({"image": image}, 3))
    assert (r.lm(r.ids, r.mask, r.method.plan(both, 3)) - without)[2].abs().max() > 1e-3


def ending_some(answers: list[list[int]]) -> int:
    """A token that would end some rows before others; -1, which ends none, if all rows say the same."""
    for token in {token for answer in answers for token in answer}:
        if len({answer.index(token) if token in answer else -1 for answer in answers}) > 1:
            return token
    return -1


def uncached(
    r: object, ids: torch.Tensor, mask: torch.Tensor, slots: list[Slots], steps: int, eos: int = 2
) -> list[list[int]]:
    """Greedy decoding that runs the whole text again for each token: the slow, obvious way."""
    rows: list[list[int]] = [[] for _ in ids]
    for _ in range(steps):
        best = r.lm(ids, mask, slots)[:, -1].argmax(-1)  # type: ignore[attr-defined]
        for tokens, token in zip(rows, best.tolist(), strict=True):
            tokens.append(token)
        ids = torch.cat([ids, best[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(best)[:, None]], 1)
    return [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in rows]
