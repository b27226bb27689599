"""What every method on a Q-Former must keep, on every kind of model. A new method inherits all of it by existing.

pytest tests/contract/test_qformer_methods.py
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import blips
import perceptune
from perceptune.config.registry import leaves
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.run_folder import load_method, write_tensors
from perceptune.types import Decoding, Sample

# Options that deserve a row of their own.
EXTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "full@projection": ("full", {"parts": ["projection"]}),
    "full@layers": ("full", {"layers": [0, 2], "dropout": False}),
    "maple@1": ("maple", {"depth": 1, "tokens": 1}),
    "llama-adapter@top": ("llama-adapter", {"layers": 2, "tokens": 3}),
    "llama-adapter@released": ("llama-adapter", {"as_released": True, "r": 4}),
    "lora@dropout": ("lora", {"peft": {"r": 2, "lora_dropout": 0.3, "target_modules": "all-linear"}}),
    "lora@dma": ("lora", {"peft": {"peft_type": "DMA", "r": 3}}),
}
SMALL_DMA: dict[str, Any] = {"r": 4, "dropout": 0.0}
SMALL_SIB: dict[str, Any] = {"hidden": 8, "size": 4}
READ: dict[str, Any] = {"instructions": ["what color?", "is this?"]}  # the dwarfs' Q-Former has 24 positions
# What a row changes of a variant's own settings.
SMALL: dict[str, dict[str, Any]] = {
    "petal": {"dma": SMALL_DMA, "sib": SMALL_SIB, **READ},
    "petal-dma": {"dma": SMALL_DMA},
    "petal-aim": {"dma": SMALL_DMA, **READ},
    "petal-sib": {"dma": SMALL_DMA, "sib": SMALL_SIB},
    "petal-released": {"dma": SMALL_DMA},
}
EXTRA |= {
    "petal@no-dma": ("petal", {"dma": None, "experts": {"top_k": 1, "balance": 0.01}, "sib": None}),
    "petal@cp": ("petal", {"dma": {**SMALL_DMA, "core": "cp", "gamma": "diagonal"}, "experts": {"n": 3, "top_k": 2}}),
    "petal@multi-pass": ("petal", {"mode": "multi_pass", "sib": {**SMALL_SIB, "y": "instruction"}}),
    "petal@random": ("petal", {"random_instructions": [3, 5], "sib": None}),
    "petal@random-passes": ("petal", {"random_instructions": [3, 5], "sib": None, "mode": "multi_pass"}),
}
NAMES = [*leaves("qformer_methods"), *EXTRA]
every_method = pytest.mark.parametrize("name", NAMES)
BLIND = {"llava"}  # to the question: its LM alone reads it
ADAPTERS = ("maple@", "llama-adapter@", "lora@")  # rows of one method with other options: on one kind of model


def fits(name: str, kind: str) -> bool:
    """Whether a row is run: some read instructions, which BLIP-2's Q-Former does not; PETAL's keys need one LM only."""
    if name.startswith(ADAPTERS):
        return kind == "t5" or (kind == "blip2-opt" and name.endswith("@released"))
    if kind == "blip2-opt":
        return not name.startswith("petal") or name in ("petal-dma", "petal-sib")
    return kind == "t5" or not name.startswith("petal") or "@" not in name


on_every_kind = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in NAMES for kind in ("t5", "llama", "blip2-opt") if fits(name, kind)]
)


def is_idle(name: str) -> bool:
    """What is trained although nothing comes of it: of a published Q-Former the last layer's feed-forward part for
    text, the bias of keys, which adds the same to all scores of a softmax, and, as in PETAL's code, `unused` parts."""
    parts = re.split(r"[./]", name)
    text = {"intermediate", "output"} & set(parts) and not {"attention", "crossattention"} & set(parts)
    last = str(blips.LAYERS - 1) in parts
    keys = name.endswith(("key/bias", "k/bias", "k_proj/bias"))
    return keys or bool(last and text) or "unused" in parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blips.save_all(tmp_path_factory.mktemp("blips"))


def row(folder: Path, name: str, kind: str) -> InstructBlipModel:
    """A model whose method is far from any neutral start, so that every part acts."""
    base, extra = EXTRA.get(name, (name, {}))
    extra = {**SMALL.get(base, {}), **extra}
    given = blips.recipe(folder / kind, method={"name": base, **extra}, cache={"features": "memory"})
    model = cast(InstructBlipModel, perceptune.build(given))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.set_dropout(on=False)
    return model


def samples(folder: Path) -> list[Sample]:
    rows = [("color?", "red"), ("what color is this picture?", "blue"), ("is this a picture?", "y")]
    return [Sample(str(i), {"image": folder / f"data/train{i}.png"}, q, (a,)) for i, (q, a) in enumerate(rows)]


def train(model: InstructBlipModel, rows: list[Sample], steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.method.parameters(), lr=1e-2)
    model.set_dropout(on=True)
    for _ in range(steps):
        loss, n = model.loss(model.collate(rows))
        (loss / n).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.set_dropout(on=False)


@on_every_kind
def test_training_moves_the_method_and_not_one_frozen_bit(folder: Path, name: str, kind: str) -> None:
    model = row(folder, name, kind)
    owned = {id(p) for p in model.method.parameters()}
    every = {f"{part}.{key}": p for part in ("blip", "encoders") for key, p in getattr(model, part).named_parameters()}
    frozen = {key: p for key, p in every.items() if id(p) not in owned}
    assert not any(p.requires_grad for p in frozen.values())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.method.parameters())
    before, method_before = copy.deepcopy(frozen), copy.deepcopy(dict(model.method.named_parameters()))
    fingerprint = model.fingerprint
    train(model, samples(folder))
    assert all(torch.equal(before[key], p) for key, p in frozen.items())
    assert model.fingerprint == fingerprint
    still = [key for key, p in model.method.named_parameters() if torch.equal(p, method_before[key])]
    assert [key for key in still if not is_idle(key)] == []
    grouped = [p for group in model.method.param_groups() for _, p in group["named"]]
    assert sorted(map(id, grouped)) == sorted(owned)


@on_every_kind
def test_a_batch_is_its_rows(folder: Path, name: str, kind: str) -> None:
    model, rows = row(folder, name, kind), samples(folder)
    together, n = model.loss(model.collate(rows))
    alone = [model.loss(model.collate([one])) for one in rows]
    assert n == sum(m for _, m in alone)
    assert float(together.detach()) == pytest.approx(sum(float(loss.detach()) for loss, _ in alone), rel=1e-5)
    for decoding in (Decoding(5), Decoding(5, beams=2), Decoding(5, sample=True)):
        assert model.answer(rows, decoding=decoding) == [model.answer([r], decoding=decoding)[0] for r in rows]


@on_every_kind
def test_what_is_saved_is_all_that_was_learnt(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    model, rows = row(folder, name, kind), samples(folder)
    fresh = cast(InstructBlipModel, perceptune.build(model.recipe))
    fresh.set_dropout(on=False)
    train(model, rows)
    expected = model.answer(rows)
    loss = float(model.loss(model.collate(rows))[0].detach())
    assert float(fresh.loss(fresh.collate(rows))[0].detach()) != loss
    write_tensors(tmp_path / "method.safetensors", model.method.state_dict())
    load_method(tmp_path / "method.safetensors", fresh)
    assert float(fresh.loss(fresh.collate(rows))[0].detach()) == loss
    assert fresh.answer(rows) == expected


@every_method
def test_the_picture_and_the_question_both_count(folder: Path, name: str) -> None:
    """Of the question, what the Q-Former makes of it."""
    model = row(folder, name, "t5")
    [first, second, _] = samples(folder)
    queries = [model.query([one]).queries for one in (
        first, Sample("", second.media, first.prompt), Sample("", first.media, second.prompt), first
    )]  # fmt: skip
    assert torch.equal(queries[0], queries[3])
    assert (queries[0] - queries[1]).abs().max() > 1e-3
    assert ((queries[0] - queries[2]).abs().max() > 1e-3) == (name not in BLIND)


@every_method
def test_sites_name_what_is_there(folder: Path, name: str) -> None:
    sites = row(folder, name, "llama").method.sites()
    assert sites
    assert all(0 <= site.layer <= blips.LAYERS and site.where and site.what for site in sites)
