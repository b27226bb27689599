"""Groups of answers that are computed together; the groups take turns, one token at a time.

Answers decoded greedily or by sampling form one group across runs if the runs share their LM, attach nothing to it,
and open the same columns in the same layers: after their prompts nothing else differs. A new request joins the group
after its prompt. Beam search, transformers' own loop, and runs with parts of their own on the LM form groups of their
own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import cast

import torch

from perceptune.lm.generation.beam_search import beam_steps
from perceptune.lm.generation.decode_state import GROWTH, DecodeState
from perceptune.lm.generation.generate import ContinuousBatch, GeneratedSequence, generate, uses_hf_generate
from perceptune.lm.generation.logprobs import score_answer
from perceptune.lm.generation.prefix_reuse import ContinuedState, KnownText
from perceptune.lm.generation.sampling import make_sampler, truncate_at_eos
from perceptune.models.slots.model import SlotModel
from perceptune.serving.requests import Job
from perceptune.serving.turns import TurnReuse


class BatchGroup(ABC):
    """Jobs that are computed together."""

    _all: list[Job]

    @property
    def jobs(self) -> list[Job]:
        """Jobs that have not ended."""
        return [job for job in self._all if not (job.ended or job.is_cancelled)]

    @abstractmethod
    def step(self) -> bool:
        """Generate a token for each job. Return False if that was the last. Raises the model's errors."""


class BatchedGroup(BatchGroup):
    """Jobs decoded by `ContinuousBatch`; groups of the same `kind` can be merged."""

    def __init__(self, jobs: Sequence[Job], going: ContinuousBatch, kind: Hashable) -> None:
        self._all, self._going, self.kind = list(jobs), going, kind
        self._run = jobs[0].run  # for its attachments to the LM: several runs share a group only if they have none

    @torch.no_grad()
    def step(self) -> bool:
        with self._run.attachments.on():
            return self._going.step()

    @torch.no_grad()
    def join(self, others: Sequence[BatchedGroup]) -> None:
        """Add the jobs of other groups to this one."""
        self._all = [job for group in (self, *others) for job in group.jobs]
        self._going.join([other._going for other in others])


class SequentialGroup(BatchGroup):
    """Jobs whose tokens are available at the end only; other groups may run between two steps."""

    def __init__(self, jobs: Sequence[Job], steps: Generator[None, None, list[list[int]]]) -> None:
        self._all, self._steps = list(jobs), steps

    @torch.no_grad()
    def step(self) -> bool:
        with self._all[0].run.attachments.on(), _handed_in(self._all):
            try:
                next(self._steps)
            except StopIteration as end:
                for job, tokens in zip(self._all, end.value, strict=True):
                    _detail(job, tokens)
                    job.set_tokens(tokens)
                return False
        return True


class _JobCallback:
    """Passes tokens to their jobs, and cancellation to the generation loop."""

    def __init__(self, jobs: Sequence[Job], eos: int) -> None:
        self._jobs, self._eos = jobs, eos

    def on_token(self, row: int, token: int) -> bool:
        return self._jobs[row].append_token(token, self._eos)

    def is_wanted(self, row: int) -> bool:
        return not self._jobs[row].is_cancelled


@torch.no_grad()
def start_groups(jobs: Sequence[Job], reuse: TurnReuse) -> list[BatchGroup]:
    """Return groups of jobs of one kind after their prompts. Raises the model's errors.

    A job whose text begins with a known one starts alone, as only the rest of it is computed.
    """
    known = {job: found for job in jobs if (found := reuse.find(job)) is not None}
    others = [job for job in jobs if job not in known]
    groups = [_start(others, reuse)] if others else []
    return [*groups, *(_start([job], reuse, found) for job, found in known.items())]


def _start(jobs: Sequence[Job], reuse: TurnReuse, known: KnownText | None = None) -> BatchGroup:
    run, samples = jobs[0].run, [job.sample for job in jobs]
    longest = max(job.decoding.max_new_tokens for job in jobs)
    decoding = replace(jobs[0].decoding, max_new_tokens=longest)
    model, seeds = run.model, [job.decoding.seed for job in jobs]
    callback = _JobCallback(jobs, model.text.eos)
    if not model.supports_continuous_batching:
        whole = partial(model.generate, samples, decoding, seeds=seeds, callback=callback)
        return SequentialGroup(jobs, _in_one_go(whole))
    with run.attachments.on(), _handed_in(jobs):
        model = cast(SlotModel, model)
        request = model.request(samples, decoding, seeds=seeds, callback=callback)
        if uses_hf_generate(model.lm, request.prompt.slots, decoding):
            return SequentialGroup(jobs, _in_one_go(partial(generate, model.lm, request)))
        if decoding.beams > 1:
            steps = beam_steps(model.lm, request.prompt, decoding, eos=request.eos, wanted=callback.is_wanted)
            return SequentialGroup(jobs, _cut(steps, request.eos))
        sampler = make_sampler(request, model.device)
        rows = [
            # Each row refers to its own job alone, so a finished job's media are released.
            GeneratedSequence(job.decoding.max_new_tokens, request.eos, sampler, number,
                              partial(job.append_token, eos=request.eos))
            for number, job in enumerate(jobs)
        ]  # fmt: skip
        for job, row in zip(jobs, rows, strict=True):
            row.constraint = job.constraint
            row.on_logits = None if job.top_logprobs is None else job.append_logits
            row.on_end = reuse.keeper(job, row, request.prompt.slots)
        room = min(longest, GROWTH)
        if known is None:
            state = DecodeState(model.lm, request.prompt, room)
        else:
            state = ContinuedState(model.lm, request.prompt, room, known, reuse.media_of(jobs[0]))
    kind = (id(model.lm), run.name if run.attachments else None, state.layout)
    return BatchedGroup(jobs, ContinuousBatch(state, rows), kind)


def merge_groups(groups: Sequence[BatchGroup]) -> list[BatchGroup]:
    """Merge the groups that can be merged; return all, in the order of each one's oldest job."""
    found: dict[Hashable, list[BatchGroup]] = {}
    for group in groups:
        found.setdefault(group.kind if isinstance(group, BatchedGroup) else id(group), []).append(group)
    for first, *others in found.values():
        if isinstance(first, BatchedGroup) and others:
            first.join([other for other in others if isinstance(other, BatchedGroup)])
    return [same[0] for same in found.values()]


def _in_one_go(whole: partial[list[list[int]]]) -> Generator[None, None, list[list[int]]]:
    yield from ()
    return whole()


def _detail(job: Job, tokens: list[int]) -> None:
    """Give the job the log-probabilities of an answer whose tokens came all at once."""
    if job.top_logprobs is not None and tokens:
        model = cast(SlotModel, job.run.model)
        job.details = score_answer(model.lm, model.prompt([job.sample]), tokens, job.top_logprobs)


def _cut(steps: Generator[None, None, list[list[int]]], eos: int) -> Generator[None, None, list[list[int]]]:
    rows = yield from steps
    return [truncate_at_eos(eos, tokens) for tokens in rows]


@contextmanager
def _handed_in(jobs: Sequence[Job]) -> Iterator[None]:
    """Use the decoded media of these jobs, so that they are not decoded again."""
    stores = jobs[0].run.model.stores
    for modality, store in stores.items():
        store.loader.decoded = {
            medium: pixels for job in jobs for medium, pixels in job.decoded.get(modality, {}).items()
        }
    try:
        yield
    finally:
        for store in stores.values():
            store.loader.decoded = {}
