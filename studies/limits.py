"""What a run gets wrong, by kind (eP-ALM's Figure 8 and appendix E): rates as JSON, and a panel of failures for each.

    python studies/limits.py CAPTIONS QUESTIONS [QUESTIONS ...] --data PREPARED --out FOLDER

CAPTIONS and QUESTIONS are folders of evaluations (`predictions.jsonl`). The panels show photos that may not be passed
on: they stay in FOLDER. Rates are against the references, which do not mention everything that a photo shows.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from command import end_with, figure, read_rows, write_table
from perceptune.data.media.source import open_image
from perceptune.data.metrics._ptb import ptb_tokens
from perceptune.tools.plots.figures import GridCell, answer_grid
from photo_questions import WORDS

Row = dict[str, Any]
RARE = 5  # an answer that fewer training samples have is rare
SHOWN = 8  # failures on a panel
THINGS = [frozenset(words.split()) for words in WORDS["named"]]
MALE, FEMALE, WRITTEN = (frozenset(WORDS[kind].split()) for kind in ("male", "female", "written"))


class Kind(NamedTuple):
    """One kind of failure: the rows it is looked for in, those that fail, and what the rate says."""

    label: str
    what: str
    rows: Sequence[Row]
    failed: Sequence[bool]


def kinds(captions: Sequence[Row], questions: Sequence[Row], trained: Counter[str]) -> list[Kind]:
    """Every kind. `trained` counts the answers of the training data."""
    counted = [row for row in questions if row["prompt"].lower().startswith("how many")]
    rare = [row for row in questions if all(trained[target.lower()] < RARE for target in row["targets"])]
    written = [row for row in captions if WRITTEN & _words_of(row["targets"])]
    named = [row for row in captions if things(row["answer"])]
    men = [row for row in captions if (w := _words_of(row["targets"])) & MALE and not w & FEMALE]
    women = [row for row in captions if (w := _words_of(row["targets"])) & FEMALE and not w & MALE]
    paired = _pairs(questions)
    return [
        _kind("counting", "questions that begin with `how many`, answered wrongly", counted, _is_wrong),
        _kind("rare", f"questions whose answer has under {RARE} training samples, answered wrongly", rare, _is_wrong),
        _kind("reading", "photos whose references mention writing, described without", written,
              lambda row: not WRITTEN & _words_of([row["answer"]])),
        _kind("made-up", "captions that name a thing which no reference names, of those that name any", named,
              lambda row: bool(things(row["answer"]) - things(" ".join(row["targets"])))),
        _kind("own-question", "answers that hold a question of their own", questions, lambda row: "?" in row["raw"]),
        Kind("common-sense", "somebody is named, and their presence denied in another answer",
             [row for row, _ in paired], [failed for _, failed in paired]),
        _kind("bias-women", "photos of women only, described with a word for men", women,
              lambda row: bool(MALE & _words_of([row["answer"]]))),
        _kind("bias-men", "photos of men only, described with a word for women", men,
              lambda row: bool(FEMALE & _words_of([row["answer"]]))),
    ]  # fmt: skip


def things(text: str) -> set[int]:
    """Which of `THINGS` a text names."""
    words = set(ptb_tokens(text))
    return {number for number, group in enumerate(THINGS) if words & group}


def _kind(label: str, what: str, rows: Sequence[Row], fails: Callable[[Row], bool]) -> Kind:
    return Kind(label, what, rows, [fails(row) for row in rows])


def _pairs(questions: Sequence[Row]) -> list[tuple[Row, bool]]:
    """Answers to `Is there a X?` where what is in the photo is said to be an X: whether they contradict that."""
    named = {
        row["media"].get("image"): row["answer"].lower() for row in questions if "who or what" in row["prompt"].lower()
    }
    found = []
    for row in questions:
        asked = re.match(r"is there an? (\w+)\b", row["prompt"].lower())
        if asked and named.get(row["media"].get("image")) == asked[1]:
            found.append((row, row["answer"].lower() == "no"))
    return found


def _is_wrong(row: Row) -> bool:
    return row["scores"]["accuracy"] < 1


def _words_of(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in ptb_tokens(text)}


def figures(found: Sequence[Kind]) -> list[Row]:
    """Rows of a table: rate, interval, and over how many."""

    def of(kind: Kind) -> Row:
        groups = [row["media"].get("image", row["id"]) for row in kind.rows]
        return figure(kind.label, kind.what, [*map(float, kind.failed)], groups)

    return [of(kind) for kind in found]


def panel(kind: Kind, path: Path) -> None:
    """The first failures with their pictures."""
    failures = [row for row, failed in zip(kind.rows, kind.failed, strict=True) if failed][:SHOWN]
    if failures:
        cells = [
            GridCell(open_image(Path(row["media"]["image"])), row["prompt"], row["answer"], row["targets"][0], False)
            for row in failures
        ]
        answer_grid(cells, path, title=f"{kind.label}: {kind.what}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("questions", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    trained = Counter(
        target.lower()
        for name in ("photo-questions-fit", "daquar-train")
        for row in read_rows(options.data / f"{name}.jsonl")
        for target in row["targets"]
    )
    questions = [row for folder in options.questions for row in read_rows(folder / "predictions.jsonl")]
    found = kinds(read_rows(options.captions / "predictions.jsonl"), questions, trained)
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in found:
        panel(kind, options.out / f"{kind.label}.png")
    write_table(options.out, "limits", figures(found), note="shares that fail")


if __name__ == "__main__":
    end_with(main)
