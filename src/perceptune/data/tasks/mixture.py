"""Several tasks in one training: each part is sampled by its weight, and scored by its own metric.

    task:
      name: mixture
      parts:
        questions: {name: vqa-v2, dir: vqa, weight: 2, prompt: "Question: {prompt} Answer:"}
        captions: {name: coco-captions, dir: coco, prompt: "An image of"}
    text: {template: "{prompt}"}

A split of the mixture is that split of every part that has it. Samples are called `questions/458752000`, metrics
`questions_accuracy`.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.lazy_rows import LazyRows, select
from perceptune.data.metrics.base import Corpus, Scored
from perceptune.data.tasks.base import Task, check_split
from perceptune.errors import UserError, error_prefix
from perceptune.types import Sample

TRAIN = "train"


class MixturePart(NamedPart):
    """A task of the mixture, with its own keys."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    prompt: str = "{prompt}"


class Mixture(Task):
    """A mixture of tasks; all parts with a split `train` are trained on."""

    class Options(Task.Options):
        """The parts, by their names in this mixture."""

        parts: dict[str, MixturePart] = Field(
            min_length=1,
            description="label → options of a task, with its sampling `weight` and `prompt` template (`{prompt}`)",
        )
        metric: str | None = Field(
            None, description="`LABEL_metric` that selects the best checkpoint; None = the first part's"
        )
        check_files: bool = Field(True, description="default of `check_files` for the parts")

        @field_validator("parts")
        @classmethod
        def _labels(cls, parts: dict[str, MixturePart]) -> dict[str, MixturePart]:
            for label, part in parts.items():
                if not label.replace("-", "").replace("_", "").isalnum():
                    raise ValueError(f"`{label}`: a label has letters, digits, `_` and `-` only")
                if part.name == "mixture":
                    raise ValueError(f"`{label}`: a mixture has no mixtures as parts: name their parts")
                if part.prompt.count("{prompt}") > 1 or "{" in part.prompt.replace("{prompt}", ""):
                    raise ValueError(f"`{label}.prompt` holds {{prompt}} once or not at all, and no other braces")
            return parts

    def __init__(self, options: Options) -> None:
        self._options = options.parts
        self._tasks = {
            label: task_of(part, f"task `mixture`, part `{label}` (`{{name}}`)", check_files=options.check_files)
            for label, part in options.parts.items()
        }
        names = dict.fromkeys(split for task in self._tasks.values() for split in task.splits)
        first = [split for split in (TRAIN, "validation") if split in names]
        self.splits = (*first, *(split for split in names if split not in first))
        self.lowercase, self.first_line, self.keeps_period = (
            all(getattr(task, rule) for task in self._tasks.values())
            for rule in ("lowercase", "first_line", "keeps_period")
        )
        label, task = next(iter(self._tasks.items()))
        self.metric = options.metric or f"{label}_{task.metric}"
        self.weights = {label: part.weight for label, part in options.parts.items()}
        if TRAIN not in self.splits:
            raise UserError("task `mixture`: no part has a split `train`")

    def samples(self, split: str) -> Sequence[Sample]:
        """Return the samples of all parts in order, as lazily as the parts do."""
        check_split(split, self.splits)
        rows = {}
        for label, task in self._tasks.items():
            if split in task.splits:
                with error_prefix(f"part `{label}`"):
                    rows[label] = task.samples(split)
        return _joined(rows, {label: self._options[label].prompt for label in rows})

    def read_from(self, split: str) -> frozenset[str]:
        """Return the sources of all parts with the split."""
        parts = [task.read_from(split) for task in self._tasks.values() if split in task.splits]
        return frozenset().union(*parts)

    def part_of(self, sample: Sample) -> str:
        return sample.id.partition("/")[0]

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """Compute each part's own metrics for its samples, as `LABEL_key`."""
        chosen: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            chosen.setdefault(self.part_of(sample), []).append(index)
        corpus: dict[str, Corpus] = {}
        tables: dict[str, Any] = {}
        whole = Scored({}, [{} for _ in samples], {"metric": "mixture", "parts": {}}, corpus, tables)
        for label, task in self._tasks.items():
            if not (indices := chosen.get(label)):
                continue
            part = task.score([predictions[index] for index in indices], [samples[index] for index in indices])
            whole.summary.update({f"{label}_{key}": value for key, value in part.summary.items()})
            whole.definition["parts"][label] = part.definition
            tables.update({f"{label}_{key}": table for key, table in part.tables.items()})
            for index, row in zip(indices, part.per_sample, strict=True):
                whole.per_sample[index].update({f"{label}_{key}": value for key, value in row.items()})
            for key, found in part.corpus.items():
                # Samples of other parts add nothing to its sums.
                statistics = np.zeros((len(samples), found.statistics.shape[1]))
                statistics[indices] = found.statistics
                corpus[f"{label}_{key}"] = Corpus(statistics, found.value)
        return whole


TASK = Mixture


def _joined(parts: dict[str, Sequence[Sample]], prompts: dict[str, str]) -> Sequence[Sample]:
    """Concatenate the rows of all parts."""
    labels, rows = list(parts), list(parts.values())
    ends = list(accumulate(map(len, rows)))

    def read(indices: Iterable[int]) -> Iterator[Sample]:
        for number, several in groupby(indices, lambda index: bisect_right(ends, index)):
            start = ends[number] - len(rows[number])
            for sample in select(rows[number], [index - start for index in several]):
                prompt = prompts[labels[number]].replace("{prompt}", sample.prompt)
                yield replace(sample, id=f"{labels[number]}/{sample.id}", prompt=prompt)

    return LazyRows(read, range(ends[-1]))
