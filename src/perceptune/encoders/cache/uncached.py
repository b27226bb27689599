"""Features of an encoder that is trained: computed at every use, with gradients, and never cached."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.feature_cache import GROUP, FeatureStore
from perceptune.encoders.cache.media_loader import MediaLoader, prefetched_map
from perceptune.types import Medium
from perceptune.utils.tensors import move


class LiveFeatures(FeatureStore):
    """A `FeatureStore` without a cache, because its rows would be wrong after the next step."""

    def __init__(self, encoder: Encoder, levels: Sequence[int], tokens: str, *, views: int = 0) -> None:
        super().__init__(encoder, levels, tokens, views=views)
        self.loader = MediaLoader(encoder, lambda one: one.identity.encode(), list)

    def precompute(self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None, **_: Any) -> int:
        """Do nothing and return 0: features change at each step. Broken media raise when they are used."""
        return 0

    def count_missing(self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None) -> int:
        """Return 0: nothing is computed in advance."""
        return 0

    def get_cached(self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None) -> Tensor | None:
        """Return None: nothing is cached."""
        return None

    def encode_loaded(self, pixels: Tensor) -> Tensor:
        """Compute features of N media that `encoder.load` has loaded, with gradients to the encoder."""
        device = next(self.encoder.parameters()).device
        return self.encoder(move(pixels.float(), device), self.levels, self.tokens).float()

    def get(self, media: Sequence[Medium], view_seeds: Sequence[int] | None = None) -> Tensor:
        """Compute features (N, n_levels, T, dim) float32, with gradients to the encoder."""
        items = self._views_of(media, view_seeds)
        distinct = list(dict.fromkeys(items))
        parts = []
        for loaded in prefetched_map(
            [distinct[i : i + GROUP] for i in range(0, len(distinct), GROUP)], self.loader.load
        ):
            for one in loaded:
                if one.error is not None:
                    raise one.error
            pixels = torch.stack([one.pixels for one in loaded if one.pixels is not None])
            parts.append(self.encode_loaded(pixels))
        found = torch.cat(parts)
        return found[move(torch.tensor([distinct.index(item) for item in items]), found.device)]
