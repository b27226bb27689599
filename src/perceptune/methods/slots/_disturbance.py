"""Disturbances of training batches, drawn for each row by its seed: noise on features, and media that are left out."""

import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from perceptune.types import Draws, Features
from perceptune.utils.tensors import move


def draw_noise(given: Features, std: float) -> Tensor:
    """Return Gaussian noise of deviation `std` for the features of a training batch."""
    assert given.draws is not None
    shape = given.values.shape[1:]
    drawn = [torch.randn(shape, generator=own) for own in row_generators("noise", given.draws)]
    return std * move(torch.stack(drawn), given.values.device)


def drop_media(modality: str, given: Features, share: float) -> Features:
    """Return a training batch's features, each medium marked absent with probability `share`; others as they are."""
    if given.draws is None:
        return given
    drawn = [float(torch.rand((), generator=own)) for own in row_generators(f"dropout-{modality}", given.draws)]
    return replace(given, present=given.present & (torch.tensor(drawn) >= share))


def row_generators(name: str, draws: Draws) -> Iterator[torch.Generator]:
    """Yield a generator for each row, which depends on nothing but the row's seed and its medium."""
    for seed in draws.rows:
        own = random.Random(f"{name}-{seed}-{draws.order}").getrandbits(63)
        yield torch.Generator().manual_seed(own)
