"""Gated cross-attention: a literal reading of it, and what its keys and values must keep through generation.

What every method keeps (causal, inert without media, cached as uncached, ...) is in the other files of this folder.

pytest tests/contract/test_cross_attention.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from answers import generated
from perceptune.config.registry import leaf
from perceptune.lm.architectures import Capabilities
from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.generation.generate import ContinuousBatch, GeneratedSequence
from perceptune.lm.generation.sampling import greedy
from perceptune.types import Decoding, Features, Prompt
from rows import FAMILIES, SHAPE, Row, absent, method_section, row

NAMES = ("depalm-xattn", "depalm-xattn-narrow")
both = pytest.mark.parametrize("name", NAMES)


def rms(x: Tensor, weight: Tensor | None) -> Tensor:
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-4).sqrt()
    return x if weight is None else x * weight


def linear(x: Tensor, layer: Any) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def asked_of(text: Tensor, module: Any, *, narrow: bool) -> Tensor:
    """q(f(x)); f is linear, GELU, linear, RMS norm."""
    if narrow:
        return linear(rms(text, None), module.query)
    first, _, second, norm = module.enter
    inside = linear(text, first)
    inside = 0.5 * inside * (1 + torch.erf(inside / 2**0.5))
    return linear(rms(linear(inside, second), norm.weight), module.query)


def attended(text: Tensor, media: Tensor, module: Any, *, narrow: bool) -> Tensor:
    """The definition for one row, text (T, d) and media (N, width): one position and one head after the other."""
    heads, queries = 2, asked_of(text, module, narrow=narrow)
    keys, values = linear(media, module.key), linear(media, module.value)
    size = queries.shape[1] // heads
    rows = []
    for t in range(len(text)):
        parts = []
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            weights = (keys[:, own] @ queries[t, own] / size**0.5).softmax(0)
            parts.append(weights @ values[:, own])
        rows.append(torch.cat(parts))
    return torch.tanh(module.gate) * linear(rms(torch.stack(rows), module.norm.weight), module.leave)


def literal(r: Row) -> Tensor:
    """Logits of a batch without padding, with the definition in front of each layer of the range."""
    method: Any = r.method
    narrow = r.name == "depalm-xattn-narrow"
    connector, attentions = method.connectors["image"], method.attentions["image"]
    values = r.features["image"].values
    states = [values[:, level] if narrow else connector.maps[0](values[:, level]) for level in range(2)]

    def before(index: int) -> Any:
        module = attentions[method.range.index(index) if narrow else 0]
        media = states[(index - method.range.start) // (len(method.range) // 2)]

        def add(_: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            front = hidden.shape[1] - r.ids.shape[1]
            rows = zip(hidden[:, front:], media, strict=True)
            added = torch.stack([attended(text, one, module, narrow=narrow) for text, one in rows])
            hidden = torch.cat([hidden[:, :front], hidden[:, front:] + added], 1)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return add

    for index in method.range:
        r.lm.layers[index].register_forward_pre_hook(before(index), with_kwargs=True)
    prompt = [slot for slot in r.plan() if slot.name == "prompt"]
    return r.lm(r.ids, r.mask, prompt, use_reference_path=True)


@both
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_it_equals_a_literal_reading(name: str, family: str) -> None:
    r, reference = row(name, family), row(name, family)
    r.mask = reference.mask = torch.ones_like(r.ids)
    reference.features = r.features
    with torch.no_grad():
        assert (r.logits() - literal(reference)).abs().max() < 1e-5
        assert (r.logits() - r.logits(features={})).abs().max() > 1e-3


@both
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_it_does_nothing_until_the_gate_opens(name: str, family: str) -> None:
    """Not one bit, and the first step opens the gate."""
    r = row(name, family)
    attentions: Any = r.method.attentions["image"]  # type: ignore[index]
    with torch.no_grad():
        for one in attentions:
            one.gate.zero_()
    assert torch.equal(r.logits(), r.logits(features=absent(r.features)))
    r.logits().pow(2).mean().backward()
    assert all(one.gate.grad is not None and one.gate.grad.abs() > 0 for one in attentions)
    found = leaf("methods", name)
    options = {key: value for key, value in {**found.defaults, **method_section(name)}.items() if key != "name"}
    fresh = found.module.METHOD(found.module.METHOD.Options(**options), r.lm, {"image": SHAPE})
    assert not any(one.gate.any() for one in fresh.attentions["image"])


@both
@pytest.mark.parametrize("how", [{}, {"beams": 3}, {"sample": True, "temperature": 0.7}, {"repetition_penalty": 1.3}])
def test_all_ways_to_generate_agree(name: str, how: dict[str, Any]) -> None:
    """With and without split execution; equal questions, other media or none, in one batch as alone."""
    r = row(name, "llama")
    order = torch.tensor([0, 1, 0, 2, 1, 0])
    ids, mask = r.ids[order], r.mask[order]
    image = r.media(6, [True, True, True, False, True, False])
    slots = r.method.build_slots({"image": image}, 6)
    decoding, seeds = Decoding(8, **how), [3, 4, 5, 6, 7, 8]
    together = generated(r.lm, ids, mask, slots, decoding, eos=2, pad=0, seeds=seeds)
    assert len({tuple(one) for one in together}) > 2
    for i in range(6):
        start = int((mask[i] == 0).sum())
        one = r.method.build_slots({"image": Features(image.values[i : i + 1], image.present[i : i + 1])}, 1)
        given = ids[i : i + 1, start:], mask[i : i + 1, start:]
        assert generated(r.lm, *given, one, decoding, eos=2, pad=0, seeds=seeds[i : i + 1]) == [together[i]]
    r.lm.capabilities = Capabilities(split_disabled_reason="a test")
    assert generated(r.lm, ids, mask, slots, decoding, eos=2, pad=0, seeds=seeds) == together


def begin(r: Row, image: Features, which: list[int], lengths: list[int]) -> ContinuousBatch:
    features = Features(image.values[which], image.present[which])
    prompt = Prompt(r.ids[which], r.mask[which], r.method.build_slots({"image": features}, len(which)))
    return ContinuousBatch(DecodeState(r.lm, prompt, 3), [GeneratedSequence(lengths[i], -1, greedy) for i in which])


@both
@pytest.mark.parametrize("family", FAMILIES[:3])
@torch.no_grad()
def test_rows_leave_and_join(name: str, family: str) -> None:
    r, lengths = row(name, family), [3, 12, 9]
    image = r.media(3)
    expected = []
    for i in range(3):
        alone = begin(r, image, [i], lengths)
        while alone.step():
            pass
        expected.append(alone.rows[0].tokens)
    going, late = begin(r, image, [0, 2], lengths), begin(r, image, [1], lengths)
    rows = [going.rows[0], late.rows[0], going.rows[1]]
    for _ in range(5):
        going.step()
    going.join([late])
    while going.step():
        pass
    assert [one.tokens for one in rows] == expected


@torch.no_grad()
def test_rows_of_another_run_do_not_join() -> None:
    """They attend through other modules, and in a batch there is one for all rows."""
    r, lengths = row("depalm-xattn", "llama"), [5, 5, 5]
    going = begin(r, r.media(3), [0], lengths)
    r.method = row("depalm-xattn", "llama").method
    other = begin(r, r.media(3), [1], lengths)
    with pytest.raises(ValueError, match="cannot be joined"):
        going.join([other])


@both
def test_two_modalities_are_added(name: str) -> None:
    r = row(name, "llama", shapes={"image": SHAPE, "audio": SHAPE})
    given = {"image": r.media(3, [True, False, True]), "audio": r.media(3, [False, True, True])}
    both, image = r.logits(features=given), r.logits(features={"image": given["image"]})
    audio = r.logits(features={"audio": given["audio"]})
    seen = r.mask.bool()
    assert torch.allclose(both[0][seen[0]], image[0][seen[0]], atol=1e-5)
    assert torch.allclose(both[1][seen[1]], audio[1][seen[1]], atol=1e-5)
    assert (both - image)[2].abs().max() > 1e-3


def test_dropout_acts_in_training_only() -> None:
    r = row("depalm-xattn", "llama", mapper_dropout=0.5)
    r.method.train(False)
    assert torch.equal(r.logits(), r.logits())
    r.method.train(True)
    assert not torch.allclose(r.logits(), r.logits(), atol=1e-4)
