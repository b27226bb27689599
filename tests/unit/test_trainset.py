"""What is gathered of the training samples in one pass."""

from __future__ import annotations

import random

import numpy as np
import pytest

import support
from perceptune.errors import UserError
from perceptune.sections import TextConfig
from perceptune.text import TextFormat
from perceptune.trainset import TrainingSet
from perceptune.types import Sample


@pytest.mark.parametrize("seed", range(5))
def test_rows_with_new_media_are_those_a_walk_finds(seed: int) -> None:
    draw = random.Random(seed)
    media = np.array([[draw.choice([0, 1, 2, 3]), draw.choice([0, 0, 11, 12])] for _ in range(40)], np.int64)
    order = np.array(draw.sample(range(40), 30), np.int64)
    seen: set[int] = set()
    walked = []
    for index in order.tolist():
        own = {int(number) for number in media[index] if number}
        if own - seen:
            walked.append(index)
            seen |= own
    rows = TrainingSet([], np.zeros(40, np.int32), None, "", media)
    assert rows.with_new_media(order).tolist() == walked


@pytest.mark.parametrize("prompt", ["a red dog", "a " * 200, "é" * 40, "?", "", "red " * 11])
@pytest.mark.parametrize("target", ["red", "red " * 60, "ж" * 30])
def test_what_fits_is_what_can_be_tokenised(prompt: str, target: str) -> None:
    text = TextFormat(support.tokenizer(), TextConfig(max_tokens=60), vocabulary=support.SIZE)
    sample = Sample("x", {}, prompt, (target,))

    def mistake(check: object) -> str:
        try:
            check(sample, target)  # type: ignore[operator]
        except UserError as error:
            return str(error)
        return ""

    assert mistake(text.require_fit) == mistake(text.training_ids)
