"""What is gathered of the training samples in one pass."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

import support
from perceptune.config.schema import TextConfig
from perceptune.errors import UserError
from perceptune.models.text_format import TextFormat
from perceptune.training.sampler import BatchSampler, WeightedSampler
from perceptune.training.training_set import AnswerParts, TrainingSet
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
    for parted in ([media[:, :1], media[:, 1:]], [media]):  # of two modalities, or up to two of one
        rows = TrainingSet([], np.zeros(40, np.int32), None, "", parted)
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


def test_balanced_sampling_draws_the_answers_to_a_prompt_equally_often() -> None:
    told = [("is it red?", "no")] * 90 + [("is it red?", "yes")] * 10
    told += [("which?", "cup")] * 30 + [("which?", "jug")] * 70
    samples = [Sample(str(n), {}, prompt, (answer,)) for n, (prompt, answer) in enumerate(told)]
    parts = AnswerParts()
    numbers = np.array([parts.add(sample) for sample in samples], np.int32)
    order = BatchSampler(len(samples), 20, 0, WeightedSampler(numbers, parts.weights(), 0))
    rows = [index for batch in range(50) for _, index in order.positions(batch)]  # five epochs
    drawn = Counter(told[row] for row in rows)
    assert drawn == dict.fromkeys(set(told), 250), "each prompt keeps its share, and its answers have halves of it"
    of_yes = Counter(row for row in rows if told[row][1] == "yes")
    assert set(of_yes.values()) == {25}, "inside an answer all samples come equally often"


@pytest.mark.parametrize("n_parts", [1, 3, 40])
def test_parts_hold_their_own_samples(n_parts: int) -> None:
    parts = np.random.default_rng(n_parts).integers(0, n_parts, 50).astype(np.int32)
    draws = WeightedSampler(parts, [0.0] * (n_parts - 1) + [1.0], seed=3)
    if (parts == n_parts - 1).any():
        rows, _ = draws.epoch(0)
        assert set(parts[rows].tolist()) == {n_parts - 1}
