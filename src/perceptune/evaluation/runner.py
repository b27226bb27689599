"""One pass over an evaluated set: samples are answered on all processes and scored on the main process."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from perceptune.data.choices import choices_of
from perceptune.data.conversations import split_answers
from perceptune.data.lazy_rows import select
from perceptune.data.metrics.base import Corpus, Scored
from perceptune.data.subset import subset
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError, nearest
from perceptune.models.base import AdaptedModel
from perceptune.types import Sample
from perceptune.utils.distributed import World
from perceptune.utils.run_log import progress

SUBSET_SEED = 1234  # fixed, so that the evaluated subset does not depend on the training seed


@dataclass(frozen=True)
class Prediction:
    """The model's answer to one sample."""

    raw: str
    logprobs: list[float] | None = None  # of the sample's choices, if they were ranked


@dataclass(frozen=True)
class EvalOutput:
    """Answers and scores of one pass over an evaluated set."""

    scored: Scored
    answers: list[Prediction]

    @property
    def summary(self) -> dict[str, float]:
        """Values over all samples."""
        return self.scored.summary

    @property
    def per_sample(self) -> list[dict[str, float]]:
        """Values of each sample."""
        return self.scored.per_sample


def select_subset(task: Task, split: str, size: int | None) -> Sequence[Sample]:
    """Select a fixed random subset of a split's rows, with one sample per answer of a conversation.

    Raises `UserError` for an empty split.
    """
    return split_answers(select_rows(task, split, size))


def select_rows(task: Task, split: str, size: int | None) -> Sequence[Sample]:
    """Select a fixed random subset of a split; a conversation is one row. Raises `UserError` for an empty split."""
    if size is not None and size < 1:
        raise UserError(f"cannot evaluate {size} samples: name at least 1")
    rows = task.samples(split)
    if not rows:
        raise UserError(f"split `{split}` is empty: there is nothing to evaluate")
    return select(rows, subset(len(rows), size, SUBSET_SEED))


def check_has_references(task: Task, samples: Sequence[Sample]) -> None:
    """Raise `UserError` if these samples lack targets or the task's metric cannot be computed from them."""
    summary = task.score([""] * len(samples), samples).summary
    if task.metric not in summary:
        raise UserError(f"the {len(samples)} evaluated samples give no `{task.metric}`{nearest(task.metric, summary)}")


def require_answerable(model: AdaptedModel, samples: Sequence[Sample]) -> None:
    """Raise `UserError` if `eval.rank` is set and a sample has no choices."""
    if model.recipe.eval.rank is not None:
        for sample in samples:
            choices_of(sample)


def predict_and_score(
    model: AdaptedModel, task: Task, samples: Sequence[Sample], world: World, *, batch_size: int | None = None,
    label: str = "", known: dict[Hashable, Prediction] | None = None,
) -> EvalOutput:  # fmt: skip
    """Answer and score samples: each process answers a part, the main one scores; every process gets the same result.

    A question that several samples ask of the same media is answered once. `known` holds answers of earlier passes,
    which are not given again, and receives the new ones. Only the main process has the statistics for intervals of
    corpus values.
    """
    known = {} if known is None else known
    keys = [_key(model, sample) for sample in samples]
    unknown: dict[Hashable, Sample] = {}
    for key, sample in zip(keys, samples, strict=True):
        if key not in known:
            unknown.setdefault(key, sample)
    answers = _answer_all(model, list(unknown.values()), world, batch_size or model.recipe.eval.batch_size, label)
    known.update(zip(unknown, answers, strict=True))
    answered = [known[key] for key in keys]
    corpus: dict[str, Corpus] = {}

    def scored() -> Scored:
        whole = task.score([one.raw for one in answered], samples)
        corpus.update(whole.corpus)
        return replace(whole, corpus={})  # functions cannot be sent between processes

    return EvalOutput(replace(world.run_on_main(scored), corpus=corpus), answered)


def _key(model: AdaptedModel, sample: Sample) -> Hashable:
    """Return what an answer depends on: seeds of sampling are those of the question, too."""
    return sample.question(), None if model.recipe.eval.rank is None else tuple(choices_of(sample))


def _answer_all(
    model: AdaptedModel, samples: Sequence[Sample], world: World, size: int, label: str
) -> list[Prediction]:  # fmt: skip
    """Return the answers to all samples, of which each process gives a part."""
    own, given = world.shard(samples), list[Prediction]()
    error: UserError | OSError | None = None
    most = math.ceil(len(samples) / world.size)  # samples of the process with the most
    with progress(len(own), label) as bar:
        for start in range(0, most, size):
            part = own[start : start + size]
            if not part and not world.is_sharded:
                break
            try:  # with a sharded LM, a process without rows must answer one too, as its weights are gathered
                answers = answers_of(model, part or list(samples[:1]), size)
            except (UserError, OSError) as caught:
                if world.is_sharded:
                    raise  # the others wait inside the LM and cannot receive the error
                error = caught
                break
            given += answers[: len(part)]
            bar.advance(len(part))
    world.raise_everywhere(error)
    return world.gather(given)


def answers_of(model: AdaptedModel, samples: Sequence[Sample], batch_size: int) -> list[Prediction]:
    """Return the generated answer to each sample, or the most likely of its choices with `eval.rank`."""
    config = model.recipe.eval
    if config.rank is None:
        return [Prediction(raw) for raw in model.answer(samples, batch_size=batch_size)]
    choices = [choices_of(sample) for sample in samples]
    ranked = model.rank(samples, choices, normalize=config.rank_normalize, batch_size=batch_size)
    return [
        Prediction(own[max(range(len(own)), key=values.__getitem__)], values)
        for own, values in zip(choices, ranked, strict=True)
    ]
