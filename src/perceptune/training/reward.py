"""What a training minimises: cross-entropy, or a reward of sampled answers with the others as a baseline.

The reward stage is self-critical sequence training (Rennie et al., 2017) with the baseline of Luo (2020): of K answers
sampled to each row, answer k has the advantage R_k minus the mean reward of the others, and the loss of a step is

    sum over answers and tokens of advantage x -log p(token) / number of all sampled tokens + ce x cross-entropy.

Answers are sampled without dropout from the same features, so their log-probabilities are those of the model that
answers; the cross-entropy has the training's dropout. An end token counts as a token: captions would lose their ends.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from perceptune.config.objective import RewardConfig
from perceptune.data.answer_cleaning import AS_WRITTEN
from perceptune.data.metrics.base import DocumentFrequencies, pairwise_cider
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.lm.generation.generate import generate
from perceptune.models.base import AdaptedModel
from perceptune.models.document_frequencies import training_frequencies
from perceptune.models.slots.model import SlotModel
from perceptune.models.text_format import Batch
from perceptune.training.optimizer import add_gradients
from perceptune.types import Features, GenerationRequest, Sample
from perceptune.utils.distributed import World
from perceptune.utils.tensors import move

CAPTION_METRICS = ("CIDEr", "SPIDEr", "SPICE", "METEOR", "BLEU-4", "ROUGE-L")

Score = Callable[[Sample, Sequence[str]], Sequence[float]]


class Objective(Protocol):
    """What a training minimises."""

    values: dict[str, float]  # of the last step, for the log

    def add_gradients(
        self, batches: Sequence[Batch | None], dummy_batch: Batch | None = None
    ) -> tuple[list[Tensor], int, int]:
        """Add up gradients of a sum; return its parts, the number of tokens to divide it by, and of samples."""


class CrossEntropy:
    """The cross-entropy of the targets."""

    def __init__(self, model: AdaptedModel) -> None:
        self.model, self.values = model, dict[str, float]()

    def add_gradients(
        self, batches: Sequence[Batch | None], dummy_batch: Batch | None = None
    ) -> tuple[list[Tensor], int, int]:
        """Add up gradients as `optimizer.add_gradients` does."""
        return add_gradients(self.model, batches, dummy_batch)


class SelfCritical:
    """Sampled answers weighted by their advantages, plus cross-entropy. `score` rewards answers to a sample."""

    def __init__(self, model: SlotModel, config: RewardConfig, score: Score) -> None:
        self.model, self.config, self.score = model, config, score
        self.values: dict[str, float] = {}
        self.decoding = replace(
            model.decoding, consensus=None, beams=1, sample=True, temperature=1.0, top_p=1.0, min_new_tokens=0,
            repetition_penalty=1.0,
        )  # fmt: skip

    def add_gradients(
        self, batches: Sequence[Batch | None], dummy_batch: Batch | None = None
    ) -> tuple[list[Tensor], int, int]:
        """Sample answers of all batches, then add up the gradients of both terms, times the number of their tokens."""
        given = [batch for batch in batches if batch is not None]
        drawn, rewards = zip(*map(self.draw, given), strict=True) if given else ((), ())
        losses, tokens, answers = add_gradients(self.model, drawn, dropout=False)
        if answers:
            mean = float(torch.cat(rewards).mean())
            self.values = {"reward": round(mean, 6), "answer_tokens": round(tokens / answers, 3)}
        if given and self.config.ce:
            scale = self.config.ce * tokens / max(sum(batch.n_tokens for batch in given), 1)
            losses += add_gradients(self.model, given, scale=scale)[0]
        return losses, tokens, sum(batch.n_samples for batch in given)

    @torch.no_grad()
    def draw(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Return K answers of each row as a batch whose weights are their advantages, and their rewards (B, K).

        They depend on the rows' seeds alone: a resumed training draws them again.
        """
        model, count = self.model, self.config.samples
        model.set_dropout(on=False)
        index = torch.arange(batch.n_samples).repeat_interleave(count)
        features = {name: replace(one, draws=None) for name, one in batch.features.items()}
        prompt, eos, pad = model.prompt(batch.samples, features), model.text.eos, model.text.pad
        seeds = [answer_seed(seed, number) for seed in batch.seeds for number in range(count)]
        found = generate(
            model.lm, GenerationRequest(prompt, self.decoding, eos, pad, seeds, num_return_sequences=count)
        )
        limits = self.decoding.max_new_tokens_per_row(prompt.mask)[index.to(prompt.mask.device)].tolist()
        ended = [ids + [eos] * (len(ids) < limit) for ids, limit in zip(found, limits, strict=True)]

        clean = model.cleaning or AS_WRITTEN
        texts = [clean(model.text.decode(ids)) for ids in found]
        rewards = torch.tensor(
            [
                [*self.score(sample, texts[row * count : (row + 1) * count])]
                for row, sample in enumerate(batch.samples)
            ], dtype=torch.float64,
        )  # fmt: skip
        rows = [model.text.prompt_row(sample) for sample in batch.samples for _ in range(count)]
        tokens = model.text.pad_rows([
            replace(row, ids=[*row.ids, *ids], supervised=[(len(row.ids), len(row.ids) + len(ids))])
            for row, ids in zip(rows, ended, strict=True)
        ])  # fmt: skip
        weights = advantages(rewards).flatten().repeat_interleave(torch.tensor([len(ids) for ids in ended]))
        repeated = {name: Features(one.values[index], one.present[index]) for name, one in batch.features.items()}
        return Batch(tokens, repeated, weights=move(weights.float(), model.device)), rewards


def advantages(rewards: Tensor) -> Tensor:
    """Return each reward (B, K) minus the mean of the others of its row; exactly 0 if all are equal."""
    differences: Tensor = rewards[:, :, None] - rewards[:, None, :]
    return differences.sum(2) / (rewards.shape[1] - 1)


def answer_seed(seed: int, number: int) -> int:
    """Return the seed of an answer, below 2^56, from that of its row in this epoch and its number."""
    return random.Random(f"answer-{seed}-{number}").getrandbits(56)


class CiderReward:
    """CIDEr-D, from 0 to 10, against the targets of all training samples with the same media and prompt."""

    def __init__(self, samples: Sequence[Sample], frequencies: DocumentFrequencies) -> None:
        self.frequencies = frequencies
        self._references: dict[Hashable, dict[str, None]] = {}
        for sample in samples:
            self._references.setdefault(sample.question(), {}).update(dict.fromkeys(sample.targets))

    def __call__(self, sample: Sample, texts: Sequence[str]) -> list[float]:
        """Return the reward of each text as an answer to the sample; an empty text has 0."""
        references = [*self._references[sample.question()]]
        scores = pairwise_cider(texts, self.frequencies, references)
        return [float(value) for value in scores.mean(1)]


def make_objective(model: AdaptedModel, task: Task, samples: Sequence[Sample], world: World) -> Objective:
    """Return what the recipe's training minimises; `samples` are its training samples.

    Raises `UserError` for a reward stage of a recipe that cannot have one.
    """
    recipe, config = model.recipe, model.recipe.train.objective
    if config is None:
        return CrossEntropy(model)
    if not isinstance(model, SlotModel):
        raise UserError(f"train.objective: no reward stage for `backbone: {recipe.backbone}`; `splice` has one")
    if world.size > 1:
        raise UserError("train.objective: a reward stage trains in one process: start it without a launcher")
    if recipe.init_from is None:
        raise UserError("train.objective: a reward stage goes on from a trained run: name it by `init_from`")
    if task.metric not in CAPTION_METRICS:
        raise UserError(
            f"train.objective: the reward {config.reward} is for captions, and the metric of the task is "
            f"`{task.metric}`: use cross-entropy (train.objective=null)"
        )
    return SelfCritical(model, config, CiderReward(samples, training_frequencies(recipe, task)))
