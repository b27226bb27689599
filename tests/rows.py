"""The matrix of contract tests: every method, variant and placement x every LM family.

A new method is found by itself through its leaf file; options that deserve a row of their own are listed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import support
from perceptune.config.recipe import Recipe, validate
from perceptune.config.registry import leaf, leaves
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.probe import probe
from perceptune.methods.slots.base import EncoderShape, Method
from perceptune.types import Features, Slots

FAMILIES = tuple(support.LM_CONFIGS)
# These share their blocks' shape with others: a few methods tell whether their own traits are kept.
FURTHER_FAMILIES = ("gemma2", "mistral", "phi", "bloom", "gptj")
METHODS_FOR_FURTHER = ("epalm", "epalm-lin", "epalm@not-last", "epalm@prompt-first")
SHAPE = EncoderShape(n_layers=4, dim=24, n_tokens=5, n_special=1, grid=(2, 2))
LEVELS = 2
# The method, its options, and how many parameters are trained then (`COUNTS` of a method's file; docs/methods.md).
EXTRA: dict[str, tuple[str, dict[str, Any], str]] = {
    "epalm@first-injected": ("epalm", {"prompt": "plain", "prompt_at": "first_injected"}, "n*C + 10*d"),
    "epalm@prompt-first": (
        "epalm", {"prompt": "plain", "prompt_at": "first_injected", "order": "prompt-slots"}, "n*C + 10*d",
    ),
    "epalm@not-last": ("epalm", {"first": 1, "last": 2}, "n*C + P + M"),
    "epalm-lin@whole-range": ("epalm-lin", {"first": 0}, "C"),
    "epalm+adapters": ("epalm", {"adapters": True}, "n*C + P + M + A"),
    "epalm@free-plan": ("epalm", {"prompt": "plain", "inject": {1: 3, 3: -3}}, "n*C + P"),
    "epalm-dma@cp": (
        "epalm-dma", {"dma": {"r": 4, "dropout": 0.0, "core": "cp", "gamma": "diagonal"}}, "n*C + DMAcp",
    ),
    "epalm-lin@attn-pool": (
        "epalm-lin", {"tokens": "all", "mapper": "attn-pool", "mapper_queries": 3, "per_layer": "scale-bias"},
        "N*e + C + 2*K*d",
    ),
    "limber@grid-flowing": (
        "limber", {"first": 2, "last": 2, "tokens": "all", "mapper": "grid", "mapper_grid": 2}, "C",
    ),
    "epalm-lin@tuned": ("epalm-lin", {"tune_norms": "injected", "tune_biases": "injected"}, "C + K*(S + O)"),
    "lora@tuned": (
        "lora",
        {"first": 2, "last": 2, "peft": {"layers_to_transform": "injected"}, "tune_norms": "all",
         "tune_biases": "injected"},
        "C + LoRA//2 + L*S + 2*O",
    ),
    "magma@parallel": ("magma", {"adapter_form": "parallel", "adapter_scaled": True}, "C + A + 2*L"),
}  # fmt: skip
# What a row changes of a variant's own settings: a core of 64 x 64 x 64 would dwarf the dwarfs.
QP = {"mapper_width": 8, "mapper_queries": 3, "mapper_depth": 1, "mapper_heads": 2, "mapper_dropout": 0.0}
SMALL: dict[str, dict[str, Any]] = {
    "epalm-dma": {"dma": {"r": 4, "dropout": 0.0}}, "depalm": QP, "mapl": QP,
    "depalm-inner": {**QP, "n_levels": 2, "first": 1, "last": 2},
    "depalm-xattn": {
        **{key: value for key, value in QP.items() if key != "mapper_queries"}, "cross_width": 8, "cross_heads": 2,
        "n_levels": 2,
    },
    "depalm-xattn-narrow": {"cross_width": 8, "cross_heads": 2, "n_levels": 2},
    "depalm-group": {key: value for key, value in QP.items() if key != "mapper_queries"},
}  # fmt: skip
# Other names for the same thing, on an encoder of another modality.
ALIASES = {"frozenbilm": "magma", "audio-adapter": "magma"}
TOKENS = SHAPE.n_tokens  # of the dwarfs' encoder, where a method wants all of them


@dataclass
class Row:
    """A method on a tiny LM, with features for a batch."""

    name: str
    lm: FrozenLM
    method: Method
    ids: torch.Tensor
    mask: torch.Tensor
    features: dict[str, Features] = field(default_factory=dict)

    def plan(self, features: dict[str, Features] | None = None) -> list[Slots]:
        return self.method.build_slots(self.features if features is None else features, self.ids.shape[0])

    def media(self, batch: int, present: list[bool] | None = None) -> Features:
        """Features of a batch, as the method wants them of the dwarfs' encoder."""
        tokens = TOKENS if self.method.tokens("image") == "all" else 1
        values = torch.randn(batch, len(self.method.levels("image")), tokens, SHAPE.dim)
        return Features(values, torch.tensor(present if present is not None else [True] * batch))

    def logits(self, **changes: Any) -> torch.Tensor:
        """Logits of the text (B, T, vocab)."""
        ids, mask = changes.get("ids", self.ids), changes.get("mask", self.mask)
        return self.lm(ids, mask, self.plan(changes.get("features")))


def method_names() -> list[str]:
    """Names of rows: every variant of every method leaf, and the placements above."""
    return [*(name for name in leaves("methods") if name not in ALIASES), *EXTRA]


every_row = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("name", method_names())


def is_run(name: str, family: str) -> bool:
    """Whether the matrix has this row; `tests/contract/conftest.py` leaves the others out."""
    return family not in FURTHER_FAMILIES or name in METHODS_FOR_FURTHER


def row(
    name: str, family: str, *, attention: str = "sdpa", shapes: dict[str, EncoderShape] | None = None,
    attach: bool = True, **options: Any,
) -> Row:  # fmt: skip
    """A freshly built row; the same weights every time."""
    recipe = validate(Recipe, {"method": {**method_section(name), **options}}, "test")
    lm = FrozenLM(support.random_lm(family, attention))
    if family in FURTHER_FAMILIES:
        lm.capabilities = probe(lm)  # as loading does; the other families need nothing of what it finds out
    found = leaf("methods", recipe.method.name)
    torch.manual_seed(3)
    chosen = found.module.METHOD.Options(**{**found.defaults, **recipe.method.options()})
    method = found.module.METHOD(chosen, lm, shapes or {"image": SHAPE})
    with torch.no_grad():
        for parameter in method.parameters():  # far from any neutral start, so that every part acts
            parameter.add_(torch.randn_like(parameter) * 0.3)
    method.unfreeze(lm, {})
    if attach:
        method.attach(lm)
    ids = torch.randint(4, support.SIZE, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask[2, :2] = 0
    made = Row(name, lm, method, ids, mask)
    made.features = {"image": made.media(3)}
    return made


def method_section(name: str) -> dict[str, Any]:
    """A row's method as a recipe names it; two levels, where the number is free."""
    base, extra, _ = EXTRA.get(name, (name, {}, ""))
    free = not {"n_levels", "inject"} & {*leaf("methods", base).defaults, *extra}
    return {"name": base, **({"n_levels": LEVELS} if free else {}), **SMALL.get(base, {}), **extra}


def formula(name: str) -> str:
    """How many parameters a row's method trains, as its file or the table above says."""
    return EXTRA[name][2] if name in EXTRA else str(leaf("methods", name).module.COUNTS[name])


def precise(r: Row) -> float:
    """Computes in float64, so that 1e-6 speaks of the mathematics and not of rounding; returns the tolerance.

    Attention written out in transformers stays in float32, and in float64 its masks become infinite there.
    """
    if r.lm.config._attn_implementation == "eager":
        return 1e-5
    r.lm.model.double()
    return 1e-6


def absent(features: dict[str, Features]) -> dict[str, Features]:
    """The same batch without any medium."""
    return {name: Features(f.values, torch.zeros_like(f.present)) for name, f in features.items()}
