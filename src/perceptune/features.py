"""Frozen parts computed once: encoder features of each medium, lower-layer states of each distinct text.

On a CPU every item is computed alone, so its bits do not depend on what else was in a batch or on what was computed
before: a resumed run, an evaluation and a single answer see exactly the same features. On other devices items are
computed in batches, where that promise holds to rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from perceptune.encoders.base import Encoder
from perceptune.lm import FrozenLM
from perceptune.media import identity
from perceptune.types import Medium

Key = TypeVar("Key", bound=Hashable)


class Memory(Generic[Key]):
    """Tensors by key within a budget of bytes. When full it keeps what it has: values never depend on it."""

    def __init__(self, megabytes: int) -> None:
        self.budget = megabytes * 2**20
        self.used = 0
        self._items: dict[Key, Tensor] = {}

    def __len__(self) -> int:
        return len(self._items)

    def gather(self, keys: Sequence[Key], compute: Callable[[list[Key]], Iterable[Tensor]]) -> list[Tensor]:
        """The tensor of each key, computing those that are missing, each once."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._items]
        fresh = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        for key, tensor in fresh.items():
            size = tensor.numel() * tensor.element_size()
            if self.used + size <= self.budget:
                self._items[key] = tensor
                self.used += size
        return [fresh[key] if key in fresh else self._items[key] for key in keys]


class FeatureStore:
    """Encoder features of media: (N, n_levels, T, dim) float32 for N media."""

    def __init__(self, encoder: Encoder, levels: Sequence[int], tokens: str, megabytes: int) -> None:
        self.encoder, self.levels, self.tokens = encoder, list(levels), tokens
        self.memory: Memory[str] = Memory(megabytes)

    def get(self, media: Sequence[Medium]) -> Tensor:
        """Features of each medium. Raises `MediaError` for one that cannot be read."""
        by_key = {identity(medium): medium for medium in media}
        keys = [identity(medium) for medium in media]
        return torch.stack(self.memory.gather(keys, lambda missing: self._encode([by_key[k] for k in missing])))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, media: list[Medium]) -> list[Tensor]:
        device = next(self.encoder.parameters()).device
        size = 1 if device.type == "cpu" else 64
        rows: list[Tensor] = []
        for start in range(0, len(media), size):
            inputs = torch.stack([self.encoder.load(medium) for medium in media[start : start + size]])
            rows += self.encoder(inputs.to(device), self.levels, self.tokens).float().cpu().unbind()
        return rows


class TextStates:
    """States of bare texts as they enter one LM layer; left-padded on request."""

    def __init__(self, lm: FrozenLM, layer: int, megabytes: int) -> None:
        self.lm, self.layer = lm, layer
        self.memory: Memory[tuple[int, ...]] = Memory(megabytes)

    def get(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T, d) for a left-padded batch (B, T); padding rows hold zeros."""
        lengths = mask.sum(-1).tolist()
        keys = [tuple(row[-n:]) for row, n in zip(ids.tolist(), lengths, strict=True)]
        states = self.memory.gather(keys, self._compute)
        width = ids.shape[1]
        padded = torch.stack([torch.nn.functional.pad(s, (0, 0, width - s.shape[0], 0)) for s in states])
        return padded.to(ids.device)

    def _compute(self, texts: list[tuple[int, ...]]) -> list[Tensor]:
        device = self.lm.device
        if device.type == "cpu":
            rows = [torch.tensor([text]) for text in texts]
            return [self.lm.states_at(self.layer, row, torch.ones_like(row))[0] for row in rows]
        width = max(len(text) for text in texts)
        ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = (torch.arange(width, 0, -1, device=device)[None] <= lengths[:, None]).long()
        states = self.lm.states_at(self.layer, ids, mask)
        # Kept in main memory: a GPU's is for what is being computed.
        return [row[-len(text) :].cpu() for row, text in zip(states, texts, strict=True)]
