"""Runs of the dwarfs that several end-to-end tests make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import perceptune
import support
from perceptune.data.media.source import content
from perceptune.encoders.base import Encoder
from perceptune.models.run_folder import METHOD
from perceptune.training.trainer import Trainer
from perceptune.utils.row_store.store import Store
from perceptune.utils.run_log import read_log


def recipe(dwarfs: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for the shared dwarfs; `changes` replace whole sections."""
    return support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", **changes)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / METHOD)


def same(a: Path, b: Path) -> bool:
    """The run's method and that of its last checkpoint, bit by bit."""
    files = [[run / METHOD, *run.glob(f"checkpoints/*/{METHOD}")] for run in (a, b)]
    assert [len(found) for found in files] == [2, 2]
    return [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def stop_after(given: dict[str, Any], run: Path, steps: int) -> None:
    """Raises out of the loop like a crash would: nothing is saved on the way out."""
    original = Trainer._step

    def crash(self: Trainer, *given: Any) -> bool:
        if self.state.step == steps:
            raise ConnectionAbortedError
        return original(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", crash)
        with pytest.raises(ConnectionAbortedError):
            perceptune.train(given, run)


def logged_steps(run: Path) -> int:
    return max((row.get("step", 0) for row in read_log(run)), default=0)


def rows_of(folder: Path) -> dict[bytes, bytes]:
    """Every row by key."""
    kept = Store.open(folder)
    assert kept.verify() == {}
    keys = kept._index.sorted[0].tobytes()
    every = [*{keys[i : i + 16] for i in range(0, len(keys), 16)}]
    rows = kept.read(every)
    return {key: row.numpy().tobytes() for key, row in zip(every, rows, strict=True) if row is not None}


def features_folder(cache: Path) -> Path:
    [folder] = [path.parent for path in cache.glob("*/meta.json") if path.parent.name != "hashes"]
    return folder


class Counting:
    """What an encoder was asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> None:
        self.encoded, self.read = 0, 0
        forward = type(encoder).forward

        def counted(module: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.encoded += len(x)
            return forward(module, x, *rest)

        def counted_content(medium: Any) -> bytes:
            self.read += 1
            return content(medium)

        monkeypatch.setattr(type(encoder), "forward", counted)
        monkeypatch.setattr("perceptune.encoders.cache.media_loader.content", counted_content)


def share_worthy(folder: Path, dwarfs: Path) -> Path:
    """A run with something learned, evaluated with its control."""
    data = support.save_data(folder / "secret place", rows=8)
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data)
    given["train"] = support.train_section(steps=30, batch_size=8, save_every=30)
    given["method"] = {"name": "epalm", "n_levels": 2, "connector_std": 0.5}
    perceptune.train(given, folder / "run")
    perceptune.evaluate(folder / "run", control=True)
    return folder / "run"


def predictions(folder: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    """Read stored predictions."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
