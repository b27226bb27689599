"""Controls for an evaluated set: the same questions with shuffled media, without media, or in exchanged order."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from perceptune.data.conversations import as_media
from perceptune.errors import UserError
from perceptune.types import Medium, Sample

_TRIES = 50  # places tried for media that share one with their neighbour

Given = tuple[Medium, ...]  # a sample's media of a modality


def shuffle_media(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Replace media by a seeded derangement: prompts stay the same, and no sample keeps its own media.

    All media of a modality in a sample are replaced together, by those of another sample that has as many. Distinct
    media are permuted in one cycle, so two questions on the same image get the same other image.
    """
    modalities = sorted({modality for sample in samples for modality in sample.media})
    moved = list(samples)
    for modality in modalities:
        distinct = dict.fromkeys(sample.list_media(modality) for sample in samples if modality in sample.media)
        following = _following(list(distinct), modality, random.Random(seed))
        moved = [
            replace(sample, media={**sample.media, modality: as_media(following[sample.list_media(modality)])})
            if modality in sample.media
            else sample
            for sample in moved
        ]
    return moved


def without_media(samples: Sequence[Sample], _: int) -> list[Sample]:
    """Remove all media with their places; prompts and earlier turns stay the same."""
    return [
        replace(sample, media={}, marks=(), history=tuple(replace(turn, marks=()) for turn in sample.history))
        for sample in samples
    ]


def exchange_media(samples: Sequence[Sample], _: int = 0) -> list[Sample]:
    """Reverse the order of each sample's media of a modality; prompts stay the same.

    Raises `UserError` if no sample has several media of a modality.
    """
    if not any(isinstance(media, tuple) for sample in samples for media in sample.media.values()):
        raise UserError("the exchanged control needs samples with several media of a modality: leave out --exchanged")
    return [
        replace(sample, media={modality: as_media(sample.list_media(modality)[::-1]) for modality in sample.media})
        for sample in samples
    ]


def _following(given: list[Given], modality: str, draw: random.Random) -> dict[Given, Given]:
    """Return for the media of each sample, distinct ones, those that replace them."""
    found: dict[Given, Given] = {}
    for count, same in groupby(sorted(given, key=len), key=len):
        media = list(same)
        if len(media) < 2:
            found[media[0]] = _borrowed(media[0], given, modality, draw)
            continue
        draw.shuffle(media)
        if count > 1:
            _part(media)
        found |= dict(zip(media, media[1:] + media[:1], strict=True))
    return found


def _borrowed(own: Given, given: Sequence[Given], modality: str, draw: random.Random) -> Given:
    """Return single media of other samples, for a sample that is the only one with its number of media."""
    others = [medium for medium in dict.fromkeys(medium for each in given for medium in each) if medium not in own]
    if len(others) < len(own):
        wanted = "two different media" if len(own) == 1 else f"{2 * len(own)} different media in samples that have them"
        held = len({medium for each in given for medium in each})
        raise UserError(
            f"the shuffled control needs {wanted} for `{modality}`, the samples hold {held}: "
            "evaluate more, or set eval.shuffled_control and eval.at_end to false"
        )
    return tuple(draw.sample(others, len(own)))


def _part(media: list[Given]) -> None:
    """Exchange places in a cycle so that neighbours share no medium, as far as that is possible by a few tries."""

    def shared(*places: int) -> int:
        return sum(not set(media[at - 1]).isdisjoint(media[at % len(media)]) for at in places)

    for at in range(len(media)):
        for other in range(at + 1, min(at + 1 + _TRIES, len(media) + at)):
            if not shared(at):
                break
            touched = {place % len(media) for place in (at, at + 1, other, other + 1)}
            before = shared(*touched)
            _swap(media, at, other)
            if shared(*touched) >= before:
                _swap(media, at, other)


def _swap(media: list[Given], one: int, other: int) -> None:
    other %= len(media)
    media[one], media[other] = media[other], media[one]


# name in results and files -> function from the evaluated samples and the recipe's seed to the control's samples
CONTROLS: dict[str, Callable[[Sequence[Sample], int], list[Sample]]] = {
    "shuffled": shuffle_media,
    "no_media": without_media,
    "exchanged": exchange_media,
}
