"""Accuracies: one value per sample, the mean over all samples and over each group."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from perceptune.data.metrics._scored import MetricOptions, References, Scored

Groups = Sequence[str | tuple[str, ...]]  # name or names of each sample's groups; "" = no group


def zipped(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each prediction with its references. Raises `ValueError` for a sample without references."""
    for index, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        if not accepted:
            raise ValueError(f"sample {index} has no references")
        yield prediction, accepted


def scored_by_group(
    values: Iterable[float], groups: Groups | None, definition: Mapping[str, Any], key: str = "accuracy"
) -> Scored:
    """Compute `key` over all samples and `key_<group>` over each group. Samples without a group count in `key` only."""
    rows = [{key: value} for value in values]
    scored = Scored(averages(rows), rows, dict(definition))
    return scored if groups is None else with_groups(scored, groups, key)


def score_of(
    metric: str, value: Callable[[str, Sequence[str], Any], float], default: MetricOptions, key: str = "accuracy"
) -> Callable[..., Scored]:
    """Return the `score` of a metric whose values are means of `value(prediction, references, options)`."""

    def score(
        predictions: Sequence[str], references: References, options: MetricOptions = default, *,
        groups: Groups | None = None,
    ) -> Scored:  # fmt: skip
        """Compute `key` over all samples and `key_<group>` over each group. Raises `ValueError` without samples."""
        values = [value(prediction, accepted, options) for prediction, accepted in zipped(predictions, references)]
        return scored_by_group(values, groups, {"metric": metric, **options.model_dump()}, key)

    return score


def with_groups(scored: Scored, groups: Groups, key: str = "accuracy") -> Scored:
    """Add `key_<group>` over the samples of each group."""
    rows = []
    for row, names in zip(scored.per_sample, groups, strict=True):
        several = (names,) if isinstance(names, str) else names
        rows.append(row | {name: row[key] for group in several if (name := group_key(group, key))})
    return replace(scored, summary=scored.summary | averages(rows), per_sample=rows)


def averages(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Compute the mean of each key over the rows that have it. Raises `ValueError` if there are no rows."""
    if not rows:
        raise ValueError("there is nothing to score")
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: _mean([row[key] for row in rows if key in row]) for key in keys}


def group_key(group: str, key: str = "accuracy") -> str:
    """Return the summary key of a group: `accuracy_yes_no` for `yes/no`; empty for a name without letters."""
    slug = re.sub(r"\W+", "_", group.lower()).strip("_")
    return f"{key}_{slug}" if slug else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
