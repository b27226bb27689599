"""Equality with a literal reading of the paper: layers >= k are one position longer than layers < k.

The reference runs the decoder blocks by hand: it concatenates the visual token at the first injected layer, overwrites
it at the later ones, and pads the mask by one row and one column, as section 3.2 describes and the official code does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rows import Row, row


def literal(r: Row, *, official: bool) -> Tensor:
    """Logits (B, T, vocab) of the text, for a batch without padding."""
    options: Any = r.method.options
    prompt = r.method.prompt()[None].expand(len(r.ids), -1, -1) if r.method.prompt is not None else None  # type: ignore[union-attr]
    model, deep = r.lm.model, ()
    if options.prompt_at == "every_layer":  # new vectors in each layer: what is embedded is replaced at once
        deep = prompt.split(options.prompt_tokens, 1)  # type: ignore[union-attr]
        prompt = torch.zeros(len(r.ids), options.prompt_tokens, r.lm.prompt_size)
    n_prompt = 0 if prompt is None else prompt.shape[1]
    hidden = _embed(model, r.ids, prompt)
    mask = _causal(hidden.shape[1])
    positions = torch.cat([torch.zeros(n_prompt, dtype=torch.long), torch.arange(r.ids.shape[1])])[None]
    values = r.features["image"].values
    if options.standardize:
        connector: Any = r.method.connectors["image"]  # type: ignore[index]
        values = (values - connector.mean) / connector.std
    else:
        connector = r.method.connectors["image"]  # type: ignore[index]
    n_visual = 0
    for index, layer in enumerate(r.lm.layers):
        if index in r.method.range:  # type: ignore[operator]
            step = max(len(r.method.range) // values.shape[1], 1)  # type: ignore[arg-type]
            level = min((index - r.method.range.start) // step, values.shape[1] - 1)  # type: ignore[union-attr]
            visual = connector.maps[min(level, len(connector.maps) - 1)](values[:, level])
            if r.method.layer_scales:  # type: ignore[truthy-function]
                visual = _scaled(r.method.layer_scales["image"], index - r.method.range.start, visual)  # type: ignore[index,union-attr,operator]
            if not n_visual:
                n_visual = visual.shape[1]
                hidden = torch.cat([visual, hidden], 1)
                mask = nn.functional.pad(mask, (n_visual, 0, n_visual, 0))  # everybody sees it, and it sees everybody
                if not official:  # causal: it sees itself, and what stands left of it
                    mask[..., :n_visual, n_visual:] = torch.finfo(mask.dtype).min
                    mask[..., :n_visual, :n_visual] = _causal(n_visual)
                positions = nn.functional.pad(positions, (n_visual, 0))
            else:
                hidden = torch.cat([visual, hidden[:, n_visual:]], 1)
        if deep:
            hidden = torch.cat([hidden[:, :n_visual], deep[index], hidden[:, n_visual + n_prompt :]], 1)
        hidden = _layer(model, layer, hidden, mask, positions)
    return _head(model, hidden)[:, n_visual + n_prompt :]


def _scaled(scales: Any, i: int, states: Tensor) -> Tensor:
    """DePALM: scale (weight x / rms(x)) + bias, its own in each layer."""
    if scales.weight is not None:
        states = states / (states.pow(2).mean(-1, keepdim=True) + scales.eps).sqrt() * scales.weight[i]
    return scales.scale[i] * states + scales.bias[i]


def _causal(length: int) -> Tensor:
    lowest = torch.finfo(torch.float32).min
    return torch.full((length, length), lowest).triu(1)[None, None]


def _embed(model: Any, ids: Tensor, prompt: Tensor | None) -> Tensor:
    if model.config.model_type == "llama":
        text = model.model.embed_tokens(ids)
        return text if prompt is None else torch.cat([prompt, text], 1)
    decoder = model.model.decoder
    text = decoder.embed_tokens(ids)
    both = text if prompt is None else torch.cat([prompt, text], 1)  # before project_in, as in the official code
    both = both if decoder.project_in is None else decoder.project_in(both)
    # Official: positions are computed before the prompt is put in front, which gets none. Here slots have position 0.
    places = decoder.embed_positions.weight[2 : 2 + ids.shape[1]]
    return both + nn.functional.pad(places, (0, 0, both.shape[1] - ids.shape[1], 0))[None]


def _layer(model: Any, layer: Any, hidden: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    if model.config.model_type == "llama":
        rotary = model.model.rotary_emb(hidden, positions)
        return layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return layer(hidden, attention_mask=mask)


def _head(model: Any, hidden: Tensor) -> Tensor:
    if model.config.model_type == "llama":
        return model.lm_head(model.model.norm(hidden))
    decoder = model.model.decoder
    if decoder.final_layer_norm is not None:
        hidden = decoder.final_layer_norm(hidden)
    return model.lm_head(hidden if decoder.project_out is None else decoder.project_out(hidden))


@pytest.mark.whole
@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize(
    "name",
    [
        "epalm",
        "epalm-pt",
        "epalm-lin",
        "epalm-ada",
        "epalm@not-last",
        "epalm-lin@whole-range",
        "limber",
        "promptfuse",
        "magma",
        "magma-all",
        "late-adapter",
        "deep-prompt",
        "depalm",
        "depalm-inner",
        "depalm-epalm",
        "epalm-lin@attn-pool",
        "limber@grid-flowing",
    ],
)
@pytest.mark.parametrize("slot_mask", ["causal", "official"])
def test_slots_equal_the_literal_forward(name: str, family: str, slot_mask: str) -> None:
    r = row(name, family, slot_mask=slot_mask)
    r.mask = torch.ones_like(r.ids)
    reference = row(name, family, slot_mask=slot_mask, attach=False)
    reference.features = r.features
    if r.method.adapters is not None:
        put_adapters_into_the_modules(reference)
    difference = (r.logits() - literal(reference, official=slot_mask == "official")).abs().max()
    assert difference < 1e-5
    other = "causal" if slot_mask == "official" else "official"
    # The slot's own state is read by the layers behind the range: the masks differ there.
    if name in ("epalm@not-last", "limber", "promptfuse", "magma", "magma-all", "depalm", "depalm-inner"):
        assert (r.logits() - row_logits(name, family, other)).abs().max() > 1e-4


class AfterModule(nn.Module):
    """MAGMA's way: the module is replaced by itself followed by x + W2 relu(W1 x)."""

    def __init__(self, module: nn.Module, adapter: Any) -> None:
        super().__init__()
        self.module, self.adapter = module, adapter

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x)
        return y + self.adapter.up(self.adapter.down(y).clamp_min(0))


def put_adapters_into_the_modules(r: Row) -> None:
    opt = r.lm.model.config.model_type == "opt"
    places = (("self_attn", "out_proj"), (None, "fc2")) if opt else (("self_attn", "o_proj"), ("mlp", "down_proj"))
    for index, layer in enumerate(r.lm.layers):
        for kind, (part, name) in zip(("attention", "mlp"), places, strict=True):
            owner: Any = layer if part is None else getattr(layer, part)
            setattr(owner, name, AfterModule(getattr(owner, name), r.method.adapters[f"{index}_{kind}"]))  # type: ignore[index]


class BesideModule(nn.Module):
    """The parallel form: a module's output plus s W2 relu(W1 x) of its input."""

    def __init__(self, module: nn.Module, adapter: Any) -> None:
        super().__init__()
        self.module, self.adapter = module, adapter

    def forward(self, hidden_states: Tensor, **rest: Any) -> Any:
        out = self.module(hidden_states, **rest)
        delta = self.adapter.up(self.adapter.down(hidden_states).clamp_min(0)) * self.adapter.scale
        return (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta


def test_parallel_adapters_take_the_modules_input() -> None:
    r, reference = (row("magma@parallel", "llama", attach=attach) for attach in (True, False))
    r.mask, reference.features = torch.ones_like(r.ids), r.features
    for index, layer in enumerate(reference.lm.layers):
        for kind, name in (("attention", "self_attn"), ("mlp", "mlp")):
            adapter = reference.method.adapters[f"{index}_{kind}"]  # type: ignore[index]
            setattr(layer, name, BesideModule(getattr(layer, name), adapter))
    assert (r.logits() - literal(reference, official=False)).abs().max() < 1e-5


def row_logits(name: str, family: str, slot_mask: str) -> Tensor:
    r = row(name, family, slot_mask=slot_mask)
    r.mask = torch.ones_like(r.ids)
    return r.logits()


@pytest.mark.parametrize("name", ["epalm@not-last", "limber", "promptfuse", "magma"])
def test_the_official_mask_leaks_the_future_and_the_causal_one_does_not(name: str) -> None:
    """Baselines at the input leak through every layer: their slot is never overwritten."""
    for slot_mask in ("official", "causal"):
        r = row(name, "opt", slot_mask=slot_mask)
        changed = r.ids.clone()
        changed[:, -1] = 4 + (changed[:, -1] - 3) % 40
        moved = (r.logits(ids=changed) - r.logits())[:, :-1][r.mask.bool()[:, :-1]].abs().max()
        assert (moved > 1e-4) if slot_mask == "official" else (moved == 0)


def test_the_official_mask_never_looks_at_padding() -> None:
    r = row("epalm@not-last", "opt", slot_mask="official")
    together = r.logits()
    ids, mask = r.ids[1:2, 5:], r.mask[1:2, 5:]
    one = {"image": type(r.features["image"])(r.features["image"].values[1:2], r.features["image"].present[1:2])}
    alone = r.lm(ids, mask, r.method.build_slots(one, 1))
    assert (alone[0] - together[1, 5:]).abs().max() < 1e-5
