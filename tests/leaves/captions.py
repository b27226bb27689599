"""A file of the user's own, judged as captions."""

from __future__ import annotations

from collections.abc import Sequence

from perceptune.data.metrics import caption
from perceptune.data.metrics.base import Scored
from perceptune.data.tasks.jsonl import JSONLines
from perceptune.types import Sample


class Captions(JSONLines):
    """`jsonl` by BLEU, ROUGE-L and CIDEr."""

    def __init__(self, options: JSONLines.Options) -> None:
        super().__init__(options)
        self.metric = "CIDEr"

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        return caption.score([self.clean(text) for text in predictions], [sample.targets for sample in samples])

    def _check_metric(self, *_: object) -> None:
        """The caption metrics are always there."""


TASK = Captions
