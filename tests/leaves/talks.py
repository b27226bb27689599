"""Conversations with several images, one a line: {"id": ..., "turns": [[question, [image, ...], answer], ...]}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.data.conversations import as_media
from perceptune.data.metrics.base import Scored
from perceptune.data.tasks.base import Task, exact_match
from perceptune.types import Mark, Message, Sample


class Talks(Task):
    """All answers are trained on; the images of a turn stand before its question."""

    class Options(Task.Options):
        """Where the rows are."""

        train: Path
        validation: Path

    data_option = "train"
    splits = ("train", "validation")
    metric = "accuracy"

    def __init__(self, options: Options) -> None:
        self._files = {"train": options.train, "validation": options.validation}

    def samples(self, split: str) -> Sequence[Sample]:
        file = self._files[split]
        return [talk(json.loads(line), file.parent) for line in file.read_text().splitlines()]

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        return exact_match(self, predictions, samples)


def talk(row: dict[str, Any], folder: Path) -> Sample:
    *earlier, (question, images, answer) = row["turns"]
    history: list[Message] = []
    for asked, shown, said in earlier:
        history += [Message("user", asked, marks(shown)), Message("assistant", said, is_target=True)]
    media = [folder / name for _, shown, _ in row["turns"] for name in shown]
    given = {"image": as_media(media)} if media else {}
    return Sample(row["id"], given, question, (answer,), {}, marks(images), tuple(history))


def marks(images: Sequence[str]) -> tuple[Mark, ...]:
    return tuple(Mark(0, "image") for _ in images)


TASK = Talks
