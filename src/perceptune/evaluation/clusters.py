"""Clusters of samples that are resampled together: answers to questions on the same media are not independent."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from perceptune.data.media.suffixes import MODALITIES
from perceptune.types import Sample

_TAG = re.compile(f"<({'|'.join(MODALITIES)})>")


def cluster_of(sample: Sample) -> tuple[Any, ...]:
    """Return the media that a sample is about, or its id if it has none.

    With a history they are those of the first turn that has some: the answers of a conversation belong together.
    """
    counts = next((marks for turn in sample.history if (marks := Counter(mark.modality for mark in turn.marks))), None)
    return _key(sample.media, counts) or (sample.id,)


def cluster_of_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return likewise the media of a row of stored predictions."""
    turns = (turn["content"] for turn in row.get("history", ()))
    counts = next((tags for text in turns if (tags := Counter(_TAG.findall(text)))), None)
    media = {name: tuple(given) if isinstance(given, list) else given for name, given in row["media"].items()}
    return _key(media, counts) or (row["id"],)


def _key(media: Mapping[str, Any], counts: Mapping[str, int] | None) -> tuple[Any, ...]:
    if counts is not None:
        media = {name: _first(given, counts[name]) for name, given in media.items() if counts.get(name)}
    return tuple(sorted(media.items()))


def _first(given: Any, count: int) -> Any:
    if not isinstance(given, tuple):
        return given
    return given[:count] if count > 1 else given[0]
