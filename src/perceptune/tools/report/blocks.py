"""What a report consists of, whatever it is written as: all texts are as they came, nothing is escaped yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Words:
    """A paragraph; `bad` for what is missing or says that the numbers mean little."""

    text: str
    tone: Literal["plain", "bad"] = "plain"


@dataclass(frozen=True)
class Table:
    """A heading, rows of as many cells; the first cell names its row."""

    caption: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Lines to be typed."""

    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing of ours (finished SVG), the same for narrow pages, and what it shows in words."""

    svg: str
    narrow: str
    alt: str


@dataclass(frozen=True)
class GivenAnswer:
    """An answer. `by` names the run where there are several; `right` is None for a metric without right and wrong."""

    by: str
    answer: str
    right: bool | None
    score: str = ""


@dataclass(frozen=True)
class Shot:
    """One answered sample: its media as small images with their descriptions, or why there are none."""

    images: Sequence[tuple[str, str]]  # data URI, description
    lacking: str
    question: str
    answers: Sequence[GivenAnswer]
    truth: str
    blind: str | None  # the answer to the same question with another sample's media

    @property
    def truth_tells(self) -> bool:
        """Whether the truth is another text than what everybody has said."""
        return any(one.answer != self.truth for one in self.answers)


@dataclass(frozen=True)
class Grid:
    """Answered samples side by side."""

    caption: str
    shots: Sequence[Shot]


Block = Words | Table | Code | Chart | Grid


@dataclass(frozen=True)
class Section:
    """Blocks under a title; `level` 2, or 3 for a part of the section before it. A folded one opens at a click."""

    title: str
    blocks: Sequence[Block]
    level: int = 2
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """A whole page."""

    title: str
    sections: Sequence[Section]


def verdict(right: bool | None) -> str:
    """A tick or a cross and the word for it: told apart without colours."""
    return "" if right is None else "✓ right:" if right else "✗ wrong:"


def without_empty(table: Table) -> Table:
    """Without the columns that say nothing of any row."""
    kept = [number for number in range(len(table.heading)) if any(row[number] for row in table.rows)]
    rows = [[row[number] for number in kept] for row in table.rows]
    return Table(table.caption, [table.heading[number] for number in kept], rows)


def grouped(table: Table) -> Table:
    """Rows that differ in nothing but their run become one."""
    runs: dict[tuple[str, ...], list[str]] = {}
    for name, *rest in table.rows:
        runs.setdefault(tuple(rest), []).append(name)
    every = len({row[0] for row in table.rows})
    rows = [["all" if 1 < len(names) == every else ", ".join(names), *rest] for rest, names in runs.items()]
    return Table(table.caption, table.heading, rows)
