"""The media of a batch's rows, of which some may lack a modality."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.types import Features, Medium, Sample
from perceptune.utils.tensors import move


def media_of(
    samples: Sequence[Sample], modality: str, view_seeds: Sequence[int] | None = None
) -> tuple[list[Medium], list[int] | None]:
    """Return the media of a modality, row by row, and, if given, their view seeds."""
    having = [(i, medium) for i, sample in enumerate(samples) for medium in sample.list_media(modality)]
    media = [medium for _, medium in having]
    return media, None if view_seeds is None else [view_seeds[i] for i, _ in having]


def by_row(samples: Sequence[Sample], modality: str, given: Tensor) -> Features:
    """Scatter the features of all media, in the order of `media_of`, over the rows of the batch and their places."""
    return by_count(torch.tensor([len(sample.list_media(modality)) for sample in samples]), given)


def by_count(counts: Tensor, given: Tensor) -> Features:
    """Scatter the features (N, ...) of all media over rows that have `counts` (B,) of them each, on the CPU."""
    most = int(counts.max())
    present = torch.arange(most)[None] < counts[:, None]
    values = given.new_zeros(len(counts) * most, *given.shape[1:])
    values[move(present.flatten().nonzero().flatten(), given.device)] = given
    if most == 1:
        return Features(values, present[:, 0])
    return Features(values.unflatten(0, (len(counts), most)), present)


def first_uses(samples: Sequence[Sample], modality: str) -> dict[Medium, Sample]:
    """Return each medium of a modality with the first sample that has it."""
    found: dict[Medium, Sample] = {}
    for sample in samples:
        for medium in sample.list_media(modality):
            found.setdefault(medium, sample)
    return found


def require_count(sample: Sample, modality: str, most: int) -> None:
    """Raise `UserError` for a sample with more media of a modality than a run takes."""
    count = len(sample.list_media(modality))
    if count > most:
        raise UserError(
            f"sample `{sample.id}` has {count} media of modality {modality}, more than "
            f"`encoders.{modality}.max_media: {most}`"
        )
