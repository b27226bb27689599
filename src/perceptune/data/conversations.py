"""Conversations: one sample per answer, and their texts with the places of the media, for people and files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, tee
from typing import Any

import numpy as np

from perceptune.data.lazy_rows import LazyRows
from perceptune.data.tasks.base import cut_tags, with_tags
from perceptune.errors import UserError
from perceptune.types import Mark, Media, Medium, Message, Sample

# Keys of the meta that belong to a sample's own target: an earlier answer has none of them.
_OF_TARGET = ("answers", "answer_type", "choices", "label")


def as_media(media: Sequence[Medium]) -> Media:
    """Return one medium or more of a modality in the form of `Sample.media`: a single one is not in a tuple."""
    return tuple(media) if len(media) > 1 else media[0]


def group_media(pairs: Iterable[tuple[str, Medium]]) -> dict[str, Media]:
    """Return `Sample.media` for pairs of modality and medium; media of a modality keep their order."""
    grouped: dict[str, list[Medium]] = {}
    for modality, medium in pairs:
        grouped.setdefault(modality, []).append(medium)
    return {modality: as_media(media) for modality, media in grouped.items()}


def join_texts(texts: Sequence[str], media: Sequence[tuple[int, str]]) -> tuple[str, tuple[Mark, ...]]:
    """Return the texts of a message joined with line breaks, and the mark of each of its media.

    `media` are modalities with the number of texts before them: a medium stands before the text that follows it.
    """
    text = "\n".join(texts)
    starts = [0]
    for one in texts:
        starts.append(starts[-1] + len(one) + 1)
    return text, tuple(Mark(min(starts[number], len(text)), modality) for number, modality in media)


def marks_in_text(marks: Sequence[Mark], history: Sequence[Message] = ()) -> tuple[Mark, ...]:
    """Return the marks of a prompt, none if all its media stand in front of it.

    Media without marks are in front of the whole text, with the template around the prompt: there training and
    `perceptune answer` have them.
    """
    modalities = [mark.modality for mark in marks]
    grouped = sorted(modalities, key=modalities.index)
    is_in_front = not history and modalities == grouped and all(mark.at == 0 for mark in marks)
    return () if is_in_front else tuple(marks)


def split_answers(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return one sample per answer that is trained on: `ID/1`, `ID/2` and so on, each with the turns before it.

    Samples whose history has no such answer (`Message.is_target`) stay as they are; if all are like that, `samples` is
    returned. Rows are read when they are needed, as those of `samples` are.
    """
    counts = np.fromiter((len(_targets(sample)) + 1 for sample in samples), np.int64)
    if (counts == 1).all():
        return samples
    rows = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)  # of the answer in its conversation

    def read(chosen: Iterable[int]) -> Iterator[Sample]:
        ahead, behind = tee(chosen)
        wanted = (int(row) for row, _ in groupby(rows[index] for index in ahead))
        found = samples.at(wanted) if isinstance(samples, LazyRows) else (samples[row] for row in wanted)
        for _, indices in groupby(behind, key=lambda index: rows[index]):
            answers = answers_of(next(found))
            for index in indices:
                yield answers[places[index]]

    return LazyRows(read, range(len(rows)))


def answers_of(sample: Sample) -> list[Sample]:
    """Return the samples that `split_answers` makes of one."""
    targets = _targets(sample)
    if not targets:
        return [sample]
    history = tuple(replace(message, is_target=False) for message in sample.history)
    meta = {key: value for key, value in sample.meta.items() if key not in _OF_TARGET}
    found = []
    for number, at in enumerate(targets, 1):
        question = history[at - 1]
        found.append(
            Sample(f"{sample.id}/{number}", _first_media(sample, at), question.text, (history[at].text,), meta,
                   question.marks, history[: at - 1])
        )  # fmt: skip
    return [*found, replace(sample, id=f"{sample.id}/{len(targets) + 1}", history=history)]


def tagged_prompt(sample: Sample) -> str:
    """Return the prompt with a tag such as `<image>` at the place of each medium that has one."""
    return _tagged(sample.prompt, sample.marks)


def tagged_history(sample: Sample) -> list[dict[str, str]]:
    """Return the earlier turns in the form of chat messages, with a tag such as `<image>` for each medium."""
    return [{"role": turn.role, "content": _tagged(turn.text, turn.marks)} for turn in sample.history]


def mark_media(question: str, media: Mapping[str, Media]) -> tuple[str, tuple[Mark, ...]]:
    """Return a question without tags such as `<image>`, and the places of its media that they mark.

    Raises `UserError` if the tags of a modality are neither none nor one for each medium. Tags of audio and video are
    text if there are no such media.
    """
    counts = {modality: len(given) if isinstance(given, tuple) else 1 for modality, given in media.items()}
    text, places = cut_tags(question, {"image", *counts})
    tags = Counter(place.modality for place in places)
    for modality, count in tags.items():
        if count != counts.get(modality, 0):
            raise UserError(
                f"the question has {count} `<{modality}>` for {counts.get(modality, 0)} media of modality {modality}: "
                "write one for each, or none"
            )
    if not places:
        return question, ()
    in_front = [Mark(0, modality) for modality, count in counts.items() if modality not in tags for _ in range(count)]
    return text, (*in_front, *(Mark(place.at, place.modality) for place in places))


def text_row(sample: Sample) -> dict[str, Any]:
    """Return `prompt` and, for a sample with earlier turns, `history` as they are stored with answers."""
    history = {"history": tagged_history(sample)} if sample.history else {}
    return {"prompt": tagged_prompt(sample), **history}


def _targets(sample: Sample) -> list[int]:
    return [at for at, message in enumerate(sample.history) if message.is_target]


def _first_media(sample: Sample, turns: int) -> dict[str, Media]:
    """Return the media of the first turns of the history."""
    counts = Counter(mark.modality for turn in sample.history[:turns] for mark in turn.marks)
    found: dict[str, Media] = {}
    for modality in sample.media:
        media = sample.list_media(modality)[: counts[modality]]
        if media:
            found[modality] = as_media(media)
    return found


def _tagged(text: str, marks: Sequence[Mark]) -> str:
    return with_tags(text, marks, before={})
