"""Cost against data size (cached samples) and against LM depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from perceptune.bench.compare import METHODS, Comparison, mean_loss
from perceptune.bench.measure import Contender, measure, peak_memory_mb, training_step
from perceptune.bench.shapes import Models, Setting
from perceptune.model import AdaptedModel
from perceptune.types import Features


class Store(Protocol):
    """Features of many media by number: what a training step reads from. An on-disk cache fits here too."""

    def __len__(self) -> int: ...

    def get(self, indices: Tensor) -> Tensor:
        """(N, n_levels, 1, dim) float32 of N media."""


class MemoryStore:
    """Random features of `size` media in main memory, float32."""

    def __init__(self, size: int, levels: int, dim: int) -> None:
        self.values = torch.empty(size, levels, 1, dim).uniform_(-1, 1, generator=torch.Generator().manual_seed(6))

    def __len__(self) -> int:
        return len(self.values)

    def get(self, indices: Tensor) -> Tensor:
        return self.values[indices]


def data_size_row(shapes: str, setting: Setting, size: int, rounds: int) -> dict[str, Any]:
    """Training on `size` cached samples; the peak memory is this process's, so call it in a fresh one."""
    models = Models(shapes, setting)
    model = models.ours("epalm", torch.float32)
    store = MemoryStore(size, models.setting.levels, models.encoder_entries["hidden_size"])
    row = measure([_reading(f"train ours epalm, {size:,} cached samples", models, model, store)], rounds)[0]
    return {**row, "cached_samples": size, "peak_memory_mb": peak_memory_mb()}


def _reading(name: str, models: Models, model: AdaptedModel, store: Store) -> Contender:
    generator = torch.Generator().manual_seed(7)
    batch = models.setting.batch

    def loss() -> Tensor:
        values = store.get(torch.randint(len(store), (batch,), generator=generator))
        return mean_loss(model, models.tokens, Features(values, torch.ones(batch, dtype=torch.bool)))

    return Contender(name, "data size", training_step(loss, list(model.method.parameters())), samples=batch)


def depth_rows(shapes: str, setting: Setting, depths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A training step of ours at several LM depths, width fixed, features and known texts cached; in turns."""
    contenders, depth_of = [], {}
    for depth in depths:
        comparison = Comparison(Models(shapes, setting, depth=depth))
        for method in METHODS:
            name = f"train ours {method} cached"
            contender = comparison.contenders(["train"], row=name)[0]
            contender.name, contender.kind = f"{name}, {depth} layers", "depth"
            depth_of[contender.name] = depth
            contenders.append(contender)
    return [{**row, "layers": depth_of[row["name"]]} for row in measure(contenders, rounds)]
