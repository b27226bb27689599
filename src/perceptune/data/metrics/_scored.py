"""What a metric reads of files, and what it gives back: values over all samples and of each, and how they were made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Floats = NDArray[np.float64]
References = Sequence[Sequence[str]]  # of each sample


class MetricOptions(BaseModel):
    """The options of a metric; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


# 1 or 0 by id, and the ids whose answers follow from each id's -> the consistency of the ids that have one.
Consistency = Callable[[Mapping[str, float], Mapping[str, Sequence[str]]], dict[str, float]]


@dataclass(frozen=True)
class Needs:
    """What `perceptune score` reads of the files for a metric; a metric's file declares it as `NEEDS`."""

    references: Literal["references", "answers"] = "references"  # accepted texts, or one answer per annotator
    prediction_key: str = ""  # the metric's own key of rows that hold a prediction for each of several metrics
    choices: bool = False  # `score` takes `choices`, where the reference rows hold them
    annotators: int = 0  # fewer answers cannot make a prediction fully right; a single one is refused
    for_one_answer: str = ""  # the metric to use instead, if samples have a single answer
    not_counted: tuple[str, bool] | None = None  # reference rows with this value at this key do not count
    by_group: str = ""  # the key of `Scored.summary` that each group of samples gets, too
    consistency: Consistency | None = None


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
