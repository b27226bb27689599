"""Cost against data size (cached samples) and against LM depth."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import METHODS, Comparison
from benchmarks.processes import peak_memory_mb
from benchmarks.shapes import Models, Setting
from benchmarks.steps import mean_loss, training_step
from perceptune.models.slots.model import SlotModel
from perceptune.models.text_format import Batch
from perceptune.types import Features
from perceptune.utils.row_store.store import Store, digest_of
from perceptune.utils.timing import Contender, measure

WRITTEN = 1000  # rows at a time


class Cached:
    """Random features of `size` media in a folder, as a feature cache keeps them."""

    def __init__(self, folder: Path, size: int, levels: int, dim: int) -> None:
        self.size, self.rows = size, Store(folder, {"dtype": "float32", "shape": [levels, 1, dim]})
        generator = torch.Generator().manual_seed(6)
        for start in range(0, size, WRITTEN):
            keys = [_key(number) for number in range(start, min(start + WRITTEN, size))]
            self.rows.append(keys, torch.empty(len(keys), levels, 1, dim).uniform_(-1, 1, generator=generator))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, n_levels, 1, dim) float32 of media by chance."""
        numbers = torch.randint(self.size, (n,), generator=generator).tolist()
        return torch.stack([row for row in self.rows.read([_key(number) for number in numbers]) if row is not None])


def _key(number: int) -> bytes:
    return digest_of(number.to_bytes(8, "little"))


def data_size_row(shapes: str, setting: Setting, size: int, rounds: int) -> dict[str, Any]:
    """Training on `size` samples cached on disk; the peak memory is this process's, so call it in a fresh one."""
    models = Models(shapes, setting)
    model = models.ours("epalm", torch.float32)
    with TemporaryDirectory() as folder:
        cached = Cached(Path(folder), size, models.setting.levels, models.encoder_entries["hidden_size"])
        row = measure([_reading(f"train ours epalm, {size:,} cached samples", models, model, cached)], rounds)[0]
    return {**row, "cached_samples": size, "peak_memory_mb": peak_memory_mb()}


def _reading(name: str, models: Models, model: SlotModel, cached: Cached) -> Contender:
    generator = torch.Generator().manual_seed(7)
    batch = models.setting.batch

    def loss() -> Tensor:
        features = Features(cached.draw(batch, generator), torch.ones(batch, dtype=torch.bool))
        return mean_loss(model, Batch(models.tokens, {"image": features}))

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
