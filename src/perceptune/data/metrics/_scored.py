"""What a metric gives back: values over all samples, values of each, and how they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Corpus:
    """A value that is not the mean over samples, such as BLEU, in a form that can be computed on any resample."""

    statistics: Floats  # (samples, k): added over the samples of a resample
    value: Callable[[Floats], Floats]  # sums (..., k) -> values (...)


@dataclass(frozen=True)
class Scored:
    """The scores of predictions against references."""

    summary: dict[str, float]
    per_sample: list[dict[str, float]]  # in the predictions' order; a sample lacks the keys that do not concern it
    definition: dict[str, Any] = field(default_factory=dict)  # tokenizer, number of references, ...: JSON only
    corpus: Mapping[str, Corpus] = field(default_factory=dict)  # keys of `summary` that are no means over samples
