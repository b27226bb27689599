"""Reuse of a conversation's earlier turns: what was computed for their answers is kept for the next question."""

from collections.abc import Callable, Sequence
from typing import cast
from weakref import WeakKeyDictionary

from perceptune.lm.generation.decode_state import DecodeState
from perceptune.lm.generation.generate import GeneratedSequence
from perceptune.lm.generation.prefix_reuse import Content, KnownText, KnownTexts, MediaContent, make_keeper
from perceptune.models.slots.model import SlotModel
from perceptune.serving.metrics import Metrics
from perceptune.serving.requests import Job
from perceptune.types import Slots


class TurnReuse:
    """The texts of answered jobs of runs that take conversations; `megabytes` of 0 keep nothing."""

    def __init__(self, megabytes: float, metrics: Metrics) -> None:
        self._known = KnownTexts(megabytes) if megabytes else None
        self._contents: WeakKeyDictionary[Job, Content] = WeakKeyDictionary()
        self._metrics = metrics
        if self._known is not None:
            known = self._known
            metrics.gauge("reuse_bytes", "Bytes of keys and values kept for next turns", lambda: known.size)

    def find(self, job: Job) -> KnownText | None:
        """Return the known start of a job's text, if any."""
        if not self._applies(job):
            return None
        assert self._known is not None
        self._contents[job] = content = cast(SlotModel, job.run.model).content_of(job.sample)
        # First questions start together with others, which saves more than a system message that is known.
        has_turns = any(message.role == "assistant" for message in job.sample.history)
        found = self._known.find(job.run.name, content.columns) if has_turns else None
        if found is not None:
            self._metrics.count("reused_turns_total")
        return found

    def media_of(self, job: Job) -> MediaContent:
        """Return the content of the media of a job whose start was found."""
        return self._contents[job].media

    def keeper(
        self, job: Job, row: GeneratedSequence, slots: Sequence[Slots]
    ) -> Callable[[DecodeState, int], None] | None:
        """Return what keeps the text of a job once its `row` has ended, with its `slots`; None if none is kept."""
        content, known = self._contents.get(job), self._known
        if content is None or known is None:
            return None
        return make_keeper(known, job.run.name, content, slots, row.tokens)

    def _applies(self, job: Job) -> bool:
        model = job.run.model
        return (
            self._known is not None and model.supports_continuous_batching and model.text.takes_history
            and job.decoding.beams == 1 and not job.decoding.changes_scores
        )  # fmt: skip
