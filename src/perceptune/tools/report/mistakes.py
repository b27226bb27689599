"""Wrong answers by kind, as far as texts alone allow: an automatic version of a paper's figure of limitations.

The eP-ALM paper (its appendix E) names missed detail, coherent text that answers another question, and hallucinated
objects. Detectable without a person: another number, yes for no, a word that is the answer to other samples, an
answer of another kind than the question requires, words that occur in no sample's reference.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perceptune.tools.report.blocks import Table

Row = Mapping[str, Any]
_MOST_KINDS = 8
_YES_NO = frozenset({"yes", "no"})
_NUMBERS = frozenset(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])


def by_kind(wrong: Sequence[Row], everything: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the wrong answers of each kind, the most frequent kind first; `everything` provides all known answers."""
    known = {_words(target) for row in everything for target in row["targets"]}
    kinds: dict[str, list[Row]] = {}
    for row in wrong:
        kinds.setdefault(_kind(_words(row["answer"]), _words(truth_of(row)), row, known), []).append(row)
    return dict(sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])))


def kinds_table(name: str, kinds: Mapping[str, Sequence[Row]], blind: Mapping[str, Row]) -> Table:
    """Return a table of each kind's count, its most frequent confusion, and how many equal the answer without media."""
    total = sum(map(len, kinds.values()))
    heading = ["kind of wrong answer", "samples", "share of wrong", "most often: said, expected"]
    if blind:
        heading.append("said with other media, too")
    rows = []
    for kind, own in list(kinds.items())[:_MOST_KINDS]:
        (said, truth), count = Counter((row["answer"], truth_of(row)) for row in own).most_common(1)[0]
        cells = [kind, f"{len(own):,}", f"{100 * len(own) / total:.1f} %",
                 f"“{_short(said)}”, “{_short(truth)}” ({count:,})"]  # fmt: skip
        if blind:
            both = [(row, other) for row in own if (other := blind.get(row["id"])) is not None]
            same = sum(_words(row["answer"]) == _words(other["answer"]) for row, other in both)
            cells.append(f"{same:,} of {len(both):,}" if both else "")
        rows.append(cells)
    return Table(f"{name}: {total:,} wrong answers by kind", heading, rows)


def truth_of(row: Row) -> str:
    """Return the answer that most annotators gave; the first of several equally frequent ones."""
    return str(Counter(row["targets"]).most_common(1)[0][0]) if row["targets"] else ""


def _kind(said: tuple[str, ...], truth: tuple[str, ...], row: Row, known: set[tuple[str, ...]]) -> str:
    if not said:
        return "no answer"
    if len(said) == len(truth) == 1 and {*said, *truth} <= _YES_NO and said != truth:
        return f"{said[0]} for {truth[0]}"
    if (said[0] in _YES_NO) != (bool(truth) and truth[0] in _YES_NO):
        return "an answer to another kind of question"
    if said != truth and _is_number(said) and _is_number(truth):
        return "another number"
    if {*said} & {word for target in row["targets"] for word in _words(target)}:
        return "partly right"
    return "the answer of other samples" if said in known else "the answer of no sample"


def _is_number(words: tuple[str, ...]) -> bool:
    return len(words) == 1 and (words[0].isdigit() or words[0] in _NUMBERS)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 40 else f"{words[:39]}…"
