"""Controls for an evaluated set: the same questions with shuffled media, or without media."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from perceptune.errors import UserError
from perceptune.types import Sample


def shuffle_media(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Replace media by a seeded derangement: prompts stay the same, and no sample keeps its own media.

    Distinct media are permuted in one cycle, so two questions on the same image get the same other image.
    """
    modalities = sorted({modality for sample in samples for modality in sample.media})
    moved = list(samples)
    for modality in modalities:
        media = list(dict.fromkeys(s.media[modality] for s in samples if modality in s.media))
        if len(media) < 2:
            raise UserError(
                f"the shuffled control needs two different media for `{modality}`, the samples hold {len(media)}: "
                "evaluate more, or set eval.shuffled_control and eval.at_end to false"
            )
        random.Random(seed).shuffle(media)
        following = dict(zip(media, media[1:] + media[:1], strict=True))
        moved = [
            replace(s, media={**s.media, modality: following[s.media[modality]]}) if modality in s.media else s
            for s in moved
        ]
    return moved


def without_media(samples: Sequence[Sample], _: int) -> list[Sample]:
    """Remove all media; prompts stay the same."""
    return [replace(sample, media={}) for sample in samples]


# name in results and files -> function from the evaluated samples and the recipe's seed to the control's samples
CONTROLS: dict[str, Callable[[Sequence[Sample], int], list[Sample]]] = {
    "shuffled": shuffle_media,
    "no_media": without_media,
}
