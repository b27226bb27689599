"""Slot models on dwarfs for conversations with several media; in place of an encoder, an image's number is the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import support
from perceptune.config.recipe import Recipe, validate
from perceptune.config.registry import leaf
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.probe import probe
from perceptune.methods.slots.base import EncoderShape
from perceptune.models.media_rows import by_row, media_of
from perceptune.models.slots.model import SlotModel
from perceptune.models.text_format import TextFormat
from perceptune.types import Features, Mark, Message, Sample

DIM = 24
SHAPE = EncoderShape(4, DIM, n_tokens=5, n_special=1, grid=(2, 2))
MAPPED = {"tokens": "all", "mapper": "attn-pool", "mapper_queries": 3}
LAYOUTS: dict[str, dict[str, Any]] = {
    "late": {"name": "epalm", "n_levels": 2},
    "late-lin": {"name": "epalm-lin", "n_levels": 2},
    "official": {"name": "epalm", "n_levels": 2, "slot_mask": "official"},
    "sequential": {"name": "limber", "tokens": "all", "slot_positions": "sequential"},
    "late-mapped": {"name": "epalm", "n_levels": 2, **MAPPED, "per_layer": "scale-bias"},
    "cross": {
        "name": "depalm-xattn", "n_levels": 2, "mapper_width": 8, "mapper_heads": 2, "mapper_dropout": 0.0,
        "cross_width": 8, "cross_heads": 2,
    },
    "cross-narrow": {"name": "depalm-xattn-narrow", "n_levels": 2, "cross_width": 8, "cross_heads": 2},
    "sequential-mapped": {"name": "limber", **MAPPED, "slot_positions": "sequential"},
}  # fmt: skip
FAMILIES = ("llama", "qwen2", "opt", "gpt2", "gpt-neox", "gemma3")
CHAT = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


def chat_tokenizer(template: str = CHAT) -> Any:
    """The dwarfs' tokenizer with a chat template."""
    found = support.tokenizer()
    found.chat_template = template
    return found


@cache
def talker(family: str, layout: str, *, most: int = 3) -> SlotModel:
    """A model for samples with at most `most` images, whose method is far from any neutral start; tests share it."""
    section = LAYOUTS[layout]
    recipe = validate(
        Recipe, {"method": section, "text": {"template": "chat"}, "encoders": {"image": {"max_media": most}}}, "test"
    )
    lm = FrozenLM(support.random_lm(family))
    lm.capabilities = probe(lm)
    found = leaf("methods", section["name"])
    torch.manual_seed(3)
    options = found.module.METHOD.Options(**{**found.defaults, **recipe.method.options()})
    method = found.module.METHOD(options, lm, {"image": replace(SHAPE, max_media=most)})
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    slots = {"image": method.count_slots(options, SHAPE, "image")} if method.is_in_text else None
    text = TextFormat(chat_tokenizer(), recipe.text, vocabulary=support.SIZE, slots_in_text=slots)
    model = SlotModel(recipe, lm, {}, method, text)
    model.encode = lambda samples, _=None: _features(model, samples)  # type: ignore[method-assign,assignment]
    return model


def _features(model: SlotModel, samples: Sequence[Sample]) -> dict[str, Features]:
    media, _ = media_of(samples, "image")
    if not media:
        return {}
    tokens = SHAPE.n_tokens if model.method.tokens("image") == "all" else 1
    shape = (len(model.method.levels("image")), tokens, DIM)
    values = [torch.randn(shape, generator=torch.Generator().manual_seed(int(str(one)))) for one in media]
    return {"image": by_row(samples, "image", torch.stack(values))}


def asked(prompt: str, *media: int, marks: Sequence[int] = (), history: Sequence[Message] = (), **more: Any) -> Sample:
    """A question about images, named by numbers, those of `history` first."""
    paths = tuple(Path(str(number)) for number in media)
    given: dict[str, Any] = {} if not paths else {"image": paths if len(paths) > 1 else paths[0]}
    places = tuple(Mark(at, "image") for at in marks)
    return Sample("q", given, prompt, more.pop("targets", ()), marks=places, history=tuple(history), **more)


def said(role: Any, text: str, *marks: int, target: bool = False) -> Message:
    """An earlier turn, with an image at each of `marks`."""
    return Message(role, text, tuple(Mark(at, "image") for at in marks), target)


@torch.no_grad()
def logits(model: SlotModel, samples: Sequence[Sample], *, reference: bool = False) -> list[torch.Tensor]:
    """The logits of each prompt's columns, without padding."""
    prompt = model.prompt(samples)
    found = model.lm(prompt.ids, prompt.mask, prompt.slots, use_reference_path=reference)
    return [row[mask.bool()] for row, mask in zip(found, prompt.mask, strict=True)]
