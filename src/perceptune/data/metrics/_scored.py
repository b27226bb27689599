"""The needs of a metric, and its result: values over all samples and per sample, with their definition."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Floats = NDArray[np.float64]
References = Sequence[Sequence[str]]  # of each sample


class MetricOptions(BaseModel):
    """The options of a metric; unknown ones are rejected."""

    model_config = ConfigDict(extra="forbid")


# Function from correctness (1 or 0) by id, and the ids entailed by each id, to the consistency of ids that have one.
Consistency = Callable[[Mapping[str, float], Mapping[str, Sequence[str]]], dict[str, float]]


@dataclass(frozen=True)
class Needs:
    """The fields that `perceptune score` reads for a metric; a metric's file declares them as `NEEDS`."""

    references: Literal["references", "answers"] = "references"  # accepted texts, or one answer per annotator
    prediction_key: str = ""  # the metric's own key in rows with a prediction for each of several metrics
    choices: bool = False  # whether `score` accepts `choices`, if reference rows have them
    annotators: int = 0  # minimum number of answers for a full score; a single answer is rejected
    for_one_answer: str = ""  # the metric to use instead, if samples have a single answer
    not_counted: tuple[str, bool] | None = None  # reference rows with this value at this key do not count
    by_group: str = ""  # key of `Scored.summary` that is also computed for each group of samples
    consistency: Consistency | None = None


@dataclass(frozen=True)
class Corpus:
    """A value that is not the mean over samples, such as BLEU, in a form that can be computed on any resample."""

    statistics: Floats  # (samples, k): summed over the samples of a resample
    value: Callable[[Floats], Floats]  # sums (..., k) -> values (...)


@dataclass(frozen=True)
class Scored:
    """The scores of predictions against references."""

    summary: dict[str, float]
    per_sample: list[dict[str, float]]  # in the order of predictions; a sample lacks keys that do not apply to it
    definition: dict[str, Any] = field(default_factory=dict)  # tokenizer, number of references, ...: JSON only
    corpus: Mapping[str, Corpus] = field(default_factory=dict)  # keys of `summary` that are not means over samples
    tables: Mapping[str, Any] = field(default_factory=dict)  # results that are more than a value: JSON only
