"""What every method must keep, on every LM family. A new method inherits all of it by existing.

pytest tests/contract/test_methods.py
"""

from __future__ import annotations

import copy

import pytest
import torch

from answers import generated
from perceptune.config.registry import leaf
from perceptune.types import Decoding, Features
from rows import (
    ALIASES,
    FAMILIES,
    LEVELS,
    QP,
    SHAPE,
    absent,
    every_method,
    every_row,
    formula,
    is_run,
    method_names,
    precise,
    row,
)  # fmt: skip
from support import random_lm

METHODS = (
    "epalm epalm-pt epalm-lin epalm-ada epalm-pt-l limber promptfuse magma magma-all frozenbilm audio-adapter "
    "late-adapter deep-prompt lora epalm-dma full depalm depalm-inner depalm-avgpool depalm-linear depalm-group "
    "depalm-rand depalm-epalm depalm-xattn depalm-xattn-narrow mapl limber-all"
)


def test_the_matrix_is_as_large_as_it_claims() -> None:
    assert len(FAMILIES) == 12
    assert sum(is_run(name, family) for name in method_names() for family in FAMILIES) == 7 * len(method_names()) + 20
    assert set(METHODS.split()) <= {*method_names(), *ALIASES}
    assert len(method_names()) >= 20
    assert {"epalm-lin", "epalm-lin@whole-range", "limber", "full"} <= set(CONNECTOR_ONLY)
    assert set(method_names()) - set(FROZEN) == {"full"}
    for name, same in ALIASES.items():
        assert leaf("methods", name)[1:] == leaf("methods", same)[1:]


@every_row
@every_method
def test_training_moves_the_method_and_not_one_frozen_bit(name: str, family: str) -> None:
    r = row(name, family)
    owned = {id(p) for p in r.method.parameters()}
    frozen = {key for key, value in r.lm.model.state_dict(keep_vars=True).items() if id(value) not in owned}
    assert (not frozen) == (name == "full")
    before = copy.deepcopy(r.lm.model.state_dict())
    method_before = copy.deepcopy(dict(r.method.named_parameters()))
    optimizer = torch.optim.AdamW(r.method.parameters(), lr=1e-2)
    for _ in range(2):
        logits = r.logits()[:, -4:-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), r.ids[:, -3:].flatten()).backward()
        optimizer.step()
        assert all(p.grad is None for p in r.lm.parameters() if id(p) not in owned)
        optimizer.zero_grad()
    after = r.lm.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    # Everything owned is trained: a parameter that never moves has no business in the optimizer.
    still = [key for key, p in r.method.named_parameters() if torch.equal(p, method_before[key])]
    assert still == []


HIDDEN, BOTTLENECK, LAYERS = 32, 32 // 8, 4
MAP = SHAPE.dim * HIDDEN + HIDDEN
ADAPTERS = LAYERS * 2 * (2 * HIDDEN * BOTTLENECK + BOTTLENECK + HIDDEN)


WIDTH, QUERIES, BLOCKS = QP["mapper_width"], QP["mapper_queries"], QP["mapper_depth"]
MAPPER = (SHAPE.dim + 1) * WIDTH + QUERIES * WIDTH + BLOCKS * (6 * WIDTH**2 + 10 * WIDTH) + (WIDTH + 1) * HIDDEN


def expected_count(name: str, family: str, prompt_size: int, injected: int) -> int:
    """The number that the method's formula gives for the tiny models, its symbols as in docs/methods.md."""
    symbols = {
        "n": LEVELS, "C": MAP, "P": 10 * prompt_size, "M": 2 * (prompt_size * prompt_size + prompt_size),
        "A": ADAPTERS, "d": HIDDEN, "e": SHAPE.dim, "L": LAYERS, "p": prompt_size, "E": 0,  # no encoder here
        "D": WIDTH, "N": QUERIES, "B": BLOCKS, "QP": MAPPER, "K": injected,
        "LM": sum(p.numel() for p in random_lm(family).parameters()) if "LM" in formula(name) else 0,
        "S": NORMS.get(family, 2 * HIDDEN), "O": 2 * sum(OUTPUTS.get(family, LLAMA_OUTPUTS)),
        "LoRA": LAYERS * 8 * LORA_WIDTHS.get(family, HIDDEN + HIDDEN + HIDDEN + HIDDEN // 2),
        "DMA": sum(dma_count(*group) + 4**3 for group in dma_groups(family)),
        "DMAcp": sum(dma_count(*group) + 4 + group[0] * group[2] for group in dma_groups(family)),
    }  # fmt: skip
    return int(eval(formula(name), {"__builtins__": {}}, symbols))


# Of a layer: scales and biases of its norms, and the widths of its linear maps' outputs.
NORMS = dict.fromkeys(("opt", "gpt2", "gpt-neox"), 4 * HIDDEN) | {
    "qwen3": 2 * HIDDEN + 2 * 8, "gemma3": 4 * HIDDEN + 2 * 8,
}  # fmt: skip
LLAMA_OUTPUTS = (HIDDEN, HIDDEN // 2, HIDDEN // 2, HIDDEN, 48, 48, HIDDEN)
OUTPUTS = {
    "opt": (HIDDEN,) * 4 + (48, HIDDEN), "gpt2": (3 * HIDDEN, HIDDEN, 4 * HIDDEN, HIDDEN),
    "gpt-neox": (3 * HIDDEN, HIDDEN, 48, HIDDEN),
}  # fmt: skip
# Rank 8 at the queries' and values' maps: inputs + outputs. Half as many values as queries, but in these:
LORA_WIDTHS = {"opt": 4 * HIDDEN, "gpt2": HIDDEN + 3 * HIDDEN, "gpt-neox": HIDDEN + 3 * HIDDEN}


def dma_groups(family: str) -> list[tuple[int, int, int]]:
    """Number, inputs and outputs of the maps of one shape, queries' and values' as for LoRA."""
    if family == "opt":
        return [(2 * LAYERS, HIDDEN, HIDDEN)]
    if family in LORA_WIDTHS:
        return [(LAYERS, HIDDEN, 3 * HIDDEN)]
    return [(LAYERS, HIDDEN, HIDDEN), (LAYERS, HIDDEN, HIDDEN // 2)]


def dma_count(n: int, inputs: int, outputs: int) -> int:
    """U, V and a mode vector each, rank 4."""
    return 4 * (inputs + outputs) + 4 * n


@every_row
@every_method
def test_what_is_trained_is_exactly_the_method(name: str, family: str) -> None:
    r = row(name, family)
    assert sum(p.numel() for p in r.method.parameters()) == expected_count(
        name, family, r.lm.prompt_size, len(r.method.injected)
    )
    assert all(p.requires_grad for p in r.method.parameters())
    owned = {id(p) for p in r.method.parameters()}
    assert not any(p.requires_grad for p in r.lm.parameters() if id(p) not in owned)
    grouped = [p for group in r.method.param_groups() for _, p in group["named"]]
    assert {id(p) for p in grouped} == {id(p) for p in r.method.parameters()}
    assert len(grouped) == len(list(r.method.parameters()))


@every_row
@every_method
def test_nothing_that_is_trained_acts_below_the_first_layer(name: str, family: str) -> None:
    """What lies below it is computed once per text, and kept."""
    method = row(name, family).method
    assert min(site.layer for site in method.sites()) == method.first_layer


def test_features_are_standardised_by_the_statistics_that_are_set() -> None:
    r = row("epalm", "llama")
    before = r.plan()
    mean, std = torch.randn(LEVELS, SHAPE.dim), torch.rand(LEVELS, SHAPE.dim) + 0.5
    r.method.set_statistics("image", mean, std)
    given = r.features["image"]
    after = r.plan({"image": Features(given.values * std[:, None] + mean[:, None], given.present)})
    for one, other in zip(before, after, strict=True):
        for layer, states in one.states.items():
            torch.testing.assert_close(other.states[layer], states, rtol=1e-4, atol=1e-4)


def test_a_frozen_lm_never_trains() -> None:
    """Its dropout would only add noise."""
    lm = row("epalm", "gpt2").lm
    lm.train()
    torch.nn.ModuleList([lm]).train()
    assert not any(module.training for module in lm.modules())


@every_row
@every_method
def test_without_media_only_the_text_side_acts(name: str, family: str) -> None:
    r = row(name, family)
    tolerance = precise(r)
    seen = r.mask.bool()
    bare = r.lm(r.ids, r.mask, [slot for slot in r.plan() if slot.name == "prompt"])
    assert (r.logits(features=absent(r.features)) - bare)[seen].abs().max() <= tolerance
    assert (r.logits(features={}) - bare)[seen].abs().max() <= tolerance
    mixed = Features(r.features["image"].values, torch.tensor([True, False, True]))
    assert (r.logits(features={"image": mixed})[1] - bare[1])[seen[1]].abs().max() <= tolerance
    assert (r.logits() - bare)[seen].abs().max() > 1e-3  # and with media it does act


FROZEN = [name for name in method_names() if not row(name, "llama").method.trains_lm]
CONNECTOR_ONLY = [name for name in method_names() if not list(row(name, "llama").method.prompt_group())]


@every_row
@pytest.mark.parametrize("name", CONNECTOR_ONLY)
def test_a_connector_alone_leaves_the_bare_lm_as_it_is(name: str, family: str) -> None:
    r = row(name, family)
    tolerance = precise(r)
    positions = (r.mask.cumsum(-1) - 1).clamp_min(0)
    bare = random_lm(family).to(r.lm.dtype)(input_ids=r.ids, attention_mask=r.mask, position_ids=positions).logits
    assert (r.logits(features={}) - bare)[r.mask.bool()].abs().max() <= tolerance


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
def test_a_ragged_batch_answers_as_each_alone(name: str, family: str) -> None:
    r = row(name, family)
    for beams in (1, 3):
        together = generated(r.lm, r.ids, r.mask, r.plan(), Decoding(6, beams=beams), eos=2, pad=0)
        for i in range(3):
            start = int((r.mask[i] == 0).sum())
            ids, mask = r.ids[i : i + 1, start:], r.mask[i : i + 1, start:]
            image = r.features["image"]
            one = {"image": Features(image.values[i : i + 1], image.present[i : i + 1])}
            alone = generated(r.lm, ids, mask, r.method.build_slots(one, 1), Decoding(6, beams=beams), eos=2, pad=0)
            assert alone[0] == together[i], f"{beams} beams, row {i}"


@every_row
@every_method
def test_mixed_rows_answer_as_each_alone(name: str, family: str) -> None:
    r = row(name, family)
    mixed = r.media(3, [True, False, True])
    together = generated(r.lm, r.ids, r.mask, r.method.build_slots({"image": mixed}, 3), Decoding(6), eos=2, pad=0)
    ids, mask = r.ids[1:2, 5:], r.mask[1:2, 5:]
    assert generated(r.lm, ids, mask, r.method.build_slots({}, 1), Decoding(6), eos=2, pad=0)[0] == together[1]


@every_row
@pytest.mark.parametrize("name", FROZEN)
def test_bfloat16_stays_finite_and_near(name: str, family: str) -> None:
    r = row(name, family)
    exact = r.logits().float()
    r.lm.model.to(torch.bfloat16)
    rough = r.logits().float()
    assert torch.isfinite(rough).all()
    assert (rough - exact)[r.mask.bool()].abs().mean() < 0.15 * exact[r.mask.bool()].abs().mean()
    assert all(p.dtype == torch.float32 for p in r.method.parameters())


@every_row
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, torch.float32) for name in method_names()] + [(name, torch.bfloat16) for name in FROZEN]
)
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
def test_eager_attention_is_the_same(name: str, family: str) -> None:
    r = row(name, family)
    difference = r.logits() - row(name, family, attention="eager").logits()
    assert difference[r.mask.bool()].abs().max() < 1e-4


@every_row
def test_the_kept_positions_are_those_of_the_full_logits(family: str) -> None:
    r = row("epalm", family)
    keep = torch.rand(r.ids.shape) < 0.4
    assert torch.allclose(r.lm(r.ids, r.mask, r.plan(), keep=keep), r.logits()[keep], atol=1e-5)


def test_two_modalities_in_one_batch_answer_as_each_alone() -> None:
    """Each encoder owns a column; a row opens those it has."""
    r = row("epalm", "llama", shapes={"image": SHAPE, "audio": SHAPE})
    image, audio = r.media(3, [True, False, True]), r.media(3, [False, True, True])
    both = {"image": image, "audio": audio}
    together = generated(r.lm, r.ids, r.mask, r.method.build_slots(both, 3), Decoding(6), eos=2, pad=0)
    for i in range(3):
        start = int((r.mask[i] == 0).sum())
        one = {name: Features(f.values[i : i + 1], f.present[i : i + 1]) for name, f in both.items() if f.present[i]}
        ids, mask = r.ids[i : i + 1, start:], r.mask[i : i + 1, start:]
        assert generated(r.lm, ids, mask, r.method.build_slots(one, 1), Decoding(6), eos=2, pad=0)[0] == together[i]
    without = r.lm(r.ids, r.mask, r.method.build_slots({"image": image}, 3))
    assert (r.lm(r.ids, r.mask, r.method.build_slots(both, 3)) - without)[2].abs().max() > 1e-3
