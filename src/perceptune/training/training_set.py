"""The training samples of a run, read once before the first step.

Everything that depends on all of them is collected in that one pass: with a million rows each further pass would take
a quarter of a minute.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptune.data.build_task import training_rows
from perceptune.data.media.source import identity
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.models.run_folder import CONVERSATIONS
from perceptune.training.sampler import TextLengths, WeightedSampler
from perceptune.types import Medium, Sample

IN_MEMORY = 10_000  # samples kept in memory instead of parsed at each use, unless their media are bytes


class AnswerParts:
    """Groups samples by prompt and first target; weights by which the answers to a prompt are drawn equally often.

    A prompt keeps its fraction of all samples. Only the first of several targets counts.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        self._samples_of: Counter[str] = Counter()  # by prompt

    def add(self, sample: Sample) -> int:
        """Count a sample; return the number of its part."""
        self._samples_of[sample.prompt] += 1
        return self._numbers.setdefault((sample.prompt, sample.targets[0]), len(self._numbers))

    def weights(self) -> list[float]:
        """Return the weight of each part, in the order of their numbers."""
        answers = Counter(prompt for prompt, _ in self._numbers)
        return [self._samples_of[prompt] / answers[prompt] for prompt, _ in self._numbers]


@dataclass(frozen=True)
class TrainingSet:
    """Samples that can be tokenised and have supervised tokens."""

    samples: Sequence[Sample]
    lengths: TextLengths  # 0 tokens each if batches do not depend on them
    draws: WeightedSampler | None  # weighted order of a mixture's parts, or of the answers to a prompt
    digest: str  # of everything that must be unchanged in a resumed run
    # For each modality (n, most media of a sample): a number for each medium, valid in this process; 0 = none.
    media: Sequence[NDArray[np.int64]]
    has_histories: bool = False  # whether a sample has an earlier answer

    def notes(self) -> dict[str, Any]:
        """Return what the run's metadata say of the samples."""
        return {CONVERSATIONS: True} if self.has_histories else {}

    def with_media_of(self, chosen: Sequence[Sample]) -> list[Sample]:
        """Return all samples that share a medium with one of these."""
        media = {medium for sample in chosen for _, medium in sample.iter_media()}
        return [sample for sample in self.samples if any(medium in media for _, medium in sample.iter_media())]

    def with_new_media(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of `order`, in order, that have a medium which no earlier row has."""
        new = np.zeros(len(order), bool)
        for numbers in self.media:
            values, first = np.unique(numbers[order], return_index=True)
            new[first[values != 0] // numbers.shape[1]] = True
        return order[new]


def training_set(model: AdaptedModel, task: Task) -> TrainingSet:
    """Read the selected samples of the task's first split. Raises `UserError` naming a sample unfit for training."""
    split, config, seed = task.splits[0], model.recipe.train, model.recipe.seed
    samples = training_rows(model.recipe, task)
    kept: list[Sample] | None = [] if len(samples) <= IN_MEMORY else None
    lengths, targets = array("i"), np.ones(len(samples), np.int32)
    parts, digest = np.zeros(len(samples), np.int32), hashlib.sha256()
    most = {modality: model.recipe.encoders[modality].max_media for modality in model.stores}
    media = {modality: np.zeros((len(samples), count), np.int64) for modality, count in most.items()}
    has_histories = False
    numbers = {name: number for number, name in enumerate(task.weights)}
    answers = AnswerParts() if config.sampling == "balanced" else None
    if answers is not None and numbers:
        raise UserError("`train.sampling: balanced` does not go with a mixture, whose parts are drawn by their weights")
    for index, sample in enumerate(samples):
        if not sample.targets:
            raise UserError(f"sample `{sample.id}` of split `{split}` has no targets to learn from")
        model.check_modalities([sample])
        own_lengths = _lengths(model, sample)
        lengths.extend(own_lengths)
        targets[index] = len(own_lengths)
        for modality, given in media.items():
            own = sample.list_media(modality)
            given[index, : len(own)] = [hash(medium) for medium in own]
        has_histories |= any(turn.role == "assistant" for turn in sample.history)
        if numbers:
            parts[index] = numbers[task.part_of(sample)]
        elif answers is not None:
            parts[index] = answers.add(sample)
        names = [(modality, name_of(medium)) for modality, medium in sample.iter_media()]
        turns = [(sample.marks, sample.history)] if sample.marks or sample.history else []
        if kept is not None:
            kept.append(sample)
            if any(isinstance(medium, bytes) for _, medium in sample.iter_media()):
                kept = None
        digest.update(repr((sample.id, sample.prompt, sample.targets, names, *turns)).encode())
    weights = list(task.weights.values()) if answers is None else answers.weights()
    draws = WeightedSampler(parts, weights, seed) if weights else None
    chosen_samples = samples if kept is None else kept
    each = TextLengths(np.array(lengths, np.int32), targets)
    return TrainingSet(chosen_samples, each, draws, digest.hexdigest(), [*media.values()], has_histories)


def name_of(medium: Medium) -> str:
    """Return a medium's name in the run folder; for a file its path, whatever its version."""
    return identity(medium) if isinstance(medium, bytes) else str(medium)


def _lengths(model: AdaptedModel, sample: Sample) -> list[int]:
    """Return a sample's tokens with each of its targets if `train.batch_tokens` needs them, else one 0."""
    budget = model.recipe.train.batch_tokens
    if budget is None:
        for target in {*sample.targets}:
            model.text.require_fit(sample, target)
        return [0]
    known = {target: len(model.text.training_ids(sample, target)[0]) for target in {*sample.targets}}
    if max(known.values()) > budget:
        raise UserError(
            f"sample `{sample.id}`: {max(known.values())} tokens, more than `train.batch_tokens` = {budget}"
        )
    return [known[target] for target in sample.targets]
