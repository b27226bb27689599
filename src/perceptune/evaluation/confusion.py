"""The tables of confusions in results, for people to read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

KEY = "confusion"
_WHOLE = 12  # classes up to which the whole table is shown
_MOST = 10  # confusions that are shown of more classes
_OTHER = "(other)"  # answers that are no class


class ConfusionTable(NamedTuple):
    """A caption, a heading, and rows of equal length."""

    caption: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


def confusion_tables(results: Mapping[str, Any]) -> Iterator[ConfusionTable]:
    """Yield a table for each `confusion` of the results: whole for a few classes, else the most frequent confusions.

    One of another form, as in the file of another program, is skipped.
    """
    for key, found in results.items():
        if key != KEY and not key.endswith(f"_{KEY}"):
            continue
        part = key.removesuffix(KEY).removesuffix("_")
        if (table := _table(found, f"{part}: " if part else "")) is not None:
            yield table


def _table(found: Any, part: str) -> ConfusionTable | None:
    try:
        names, counts = [*map(str, found["classes"])], [[*map(int, row)] for row in found["counts"]]
    except (KeyError, TypeError, ValueError):
        return None
    if len(counts) != len(names) or any(len(row) != len(names) + 1 for row in counts):
        return None
    columns = [*names, _OTHER]
    if len(names) <= _WHOLE:
        rows = [[name, *map(str, row)] for name, row in zip(names, counts, strict=True)]
        return ConfusionTable(f"{part}answers (columns) to the samples of each class (rows)", ["", *columns], rows)
    wrong = [(count, names[i], columns[j]) for i, row in enumerate(counts) for j, count in enumerate(row)
             if count and i != j]  # fmt: skip
    wrong.sort(key=lambda one: -one[0])
    if not wrong:
        return None
    caption = f"{part}the most frequent of {len(wrong)} confusions between {len(names)} classes"
    heading = ["class", "answered as", "samples"]
    return ConfusionTable(caption, heading, [[name, other, str(count)] for count, name, other in wrong[:_MOST]])
