"""The media of a batch's rows, of which some may lack a modality."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perceptune.types import Features, Medium, Sample
from perceptune.utils.tensors import move


def media_of(
    samples: Sequence[Sample], modality: str, view_seeds: Sequence[int] | None = None
) -> tuple[list[Medium], list[int] | None]:
    """Return the media of a modality and, if given, their view seeds."""
    having = [i for i, sample in enumerate(samples) if modality in sample.media]
    return [samples[i].media[modality] for i in having], None if view_seeds is None else [view_seeds[i] for i in having]


def by_row(samples: Sequence[Sample], modality: str, given: Tensor) -> Features:
    """Scatter the features of the rows that have the modality over all rows of the batch."""
    present = torch.tensor([modality in sample.media for sample in samples])
    values = given.new_zeros(len(samples), *given.shape[1:])
    values[move(present.nonzero().flatten(), given.device)] = given
    return Features(values, present)
