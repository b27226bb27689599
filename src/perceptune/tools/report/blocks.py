"""Blocks of a report, independent of its format: texts are raw, nothing is escaped yet."""

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Words(NamedTuple):
    """A paragraph; `bad` for a warning that something is missing or the numbers mean little."""

    text: str
    tone: Literal["plain", "bad"] = "plain"


class Table(NamedTuple):
    """A heading and rows of equal length; the first cell names its row."""

    caption: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


class Code(NamedTuple):
    """Command lines."""

    text: str


class Chart(NamedTuple):
    """A drawing of ours (finished SVG), the same for narrow pages, and its description."""

    svg: str
    narrow: str
    alt: str


class GivenAnswer(NamedTuple):
    """An answer. `by` names the run if there are several; `right` is None for a graded metric."""

    by: str
    answer: str
    right: bool | None
    score: str = ""


class Shot(NamedTuple):
    """One answered sample: its media as thumbnails with their descriptions, or why there are none."""

    images: Sequence[tuple[str, str]]  # data URI, description
    lacking: str
    question: str
    answers: Sequence[GivenAnswer]
    truth: str
    blind: str | None  # the answer to the same question with another sample's media
    history: Sequence[str] = ()  # earlier turns

    @property
    def truth_tells(self) -> bool:
        """Whether the reference differs from all answers."""
        return any(one.answer != self.truth for one in self.answers)


class Grid(NamedTuple):
    """Answered samples side by side."""

    caption: str
    shots: Sequence[Shot]


Block = Words | Table | Code | Chart | Grid


class Section(NamedTuple):
    """Blocks under a title; `level` 2, or 3 for a subsection. A folded one opens at a click."""

    title: str
    blocks: Sequence[Block]
    level: int = 2
    folded: bool = False


class Report(NamedTuple):
    """A whole page."""

    title: str
    sections: Sequence[Section]


def verdict(right: bool | None) -> str:
    """Return a tick or a cross with the word for it: distinguishable without colours."""
    return "" if right is None else "✓ right:" if right else "✗ wrong:"


def without_empty(table: Table) -> Table:
    """Return the table without empty columns."""
    kept = [number for number in range(len(table.heading)) if any(row[number] for row in table.rows)]
    rows = [[row[number] for number in kept] for row in table.rows]
    return Table(table.caption, [table.heading[number] for number in kept], rows)


def grouped(table: Table) -> Table:
    """Merge rows that differ only in their run."""
    runs: dict[tuple[str, ...], list[str]] = {}
    for name, *rest in table.rows:
        runs.setdefault(tuple(rest), []).append(name)
    every = len({row[0] for row in table.rows})
    rows = [["all" if 1 < len(names) == every else ", ".join(names), *rest] for rest, names in runs.items()]
    return Table(table.caption, table.heading, rows)
