"""The studies' data sets as JSON lines that task `jsonl` reads.

    python studies/prepare.py DATA OUT

DATA holds the folders `flickr8k`, `daquar`, `esc50_subset`, `fsdd`, `audiocaps_demo`, `fight_surv` and
`tuxpaint_stamps`, each with a `metadata.jsonl`. What is written to OUT names the media where they are; no medium is
copied. Existing files that differ are replaced.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from command import end_with
from perceptune.errors import UserError
from photo_questions import ask

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # splits, and what they have


def prepare(data: Path, out: Path) -> list[Path]:
    """Writes every file; returns their paths. Raises `UserError` for a set that is not there or not as expected."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in SETS.items():
        made: dict[str, list[Row]] = {}
        for split, row in rows(data):
            made.setdefault(split, []).append(row)
        for split, kept in made.items():
            path = out / f"{name}-{split}.jsonl"
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode()
            if not path.is_file() or path.read_bytes() != text:  # a training may be reading it
                path.write_bytes(text)
            written.append(path)
    return written


def flickr_captions(data: Path, file: str = "metadata.jsonl") -> Rows:
    """One row a photo, with its five captions."""
    for row in _rows(data, "flickr8k", file):
        yield row["split"], _sample(row, "image", _sentences(row["captions"]))


def photo_questions(data: Path) -> Rows:
    """Questions made by rules from the captions of the same photos; `fit` is of the splits `train` and `dev`."""
    photos: dict[str, list[Row]] = {"fit": [], "test": []}
    for row in _rows(data, "flickr8k"):
        photos["test" if row["split"] == "test" else "fit"].append(row)
    for split, those in photos.items():
        for number, asked in enumerate(ask([row["captions"] for row in those], split)):
            made = _sample(those[asked.photo], "image", [asked.answer], asked.question, number)
            yield split, {**made, "answer_type": asked.kind}


def daquar(data: Path) -> Rows:
    """A list of things is one answer, as in the published evaluation."""
    for number, row in enumerate(_rows(data, "daquar")):
        yield row["split"], _sample(row, "image", [row["answer"]], row["question"], number)


def sounds(data: Path) -> Rows:
    """ESC-50: of each class, the recordings of fold 4 are split by their source: the last two test, the others train.

    Clips of one source recording (the number in a clip's name) never lie in two splits.
    """
    for split, row in _sounds(data):
        yield split, _sample(row, "audio", [row["category"].replace("_", " ")], "What is this sound?")


def sound_sentences(data: Path) -> Rows:
    """The same clips with one fixed sentence a class."""
    for split, row in _sounds(data):
        yield split, _sample(row, "audio", [row["template_caption"]])


def _sounds(data: Path) -> Rows:
    kept = list(_rows(data, "esc50_subset"))
    sources: dict[str, dict[str, None]] = {}  # of each class, in their order
    for row in kept:
        if row["fold"] == 4:
            sources.setdefault(row["category"], {})[_source(row)] = None
    for row in kept:
        is_tested = row["fold"] == 4 and _source(row) in [*sources[row["category"]]][-2:]
        yield "test" if is_tested else "train", row


def digits(data: Path) -> Rows:
    """Spoken digits."""
    for row in _rows(data, "fsdd"):
        yield row["split"], _sample(row, "audio", [row["transcript"]], "Which digit is spoken?")


def fights(data: Path) -> Rows:
    """Surveillance clips; every third source is a test source, so that no footage is in both splits."""
    kept = [(row, row["youtube"] or row["file"]) for row in _rows(data, "fight_surv")]
    order = sorted({source for _, source in kept})
    for row, source in kept:
        split = "test" if order.index(source) % 3 == 2 else "train"
        yield split, _sample(row, "video", [row["answer"]], row["question"])


def sound_captions(data: Path) -> Rows:
    """AudioCaps' demonstration clips, all of its test split."""
    for row in _rows(data, "audiocaps_demo"):
        yield "test", _sample(row, "audio", _sentences(row["captions"]))


def stamps(data: Path) -> Rows:
    """Pictures with a few words; all of them for test."""
    for row in _rows(data, "tuxpaint_stamps"):
        yield "test", _sample(row, "image", _sentences(row["captions"]))


SETS: dict[str, Callable[[Path], Rows]] = {
    "flickr8k": flickr_captions, "photo-questions": photo_questions, "daquar": daquar, "esc50": sounds,
    "esc50-captions": sound_sentences, "fsdd": digits, "fights": fights, "audiocaps": sound_captions, "stamps": stamps,
}  # fmt: skip


def _rows(data: Path, name: str, file: str = "metadata.jsonl") -> Iterator[Row]:
    """Yield the rows of a set's metadata, each with the path of its medium."""
    path = data / name / file
    if not path.is_file():
        raise UserError(f"{path} is not there: the first argument is the folder that holds `{name}`")
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield {**row, "medium": (path.parent / (row["file"] if "file" in row else row["image"])).resolve()}


def _sample(row: Row, modality: str, targets: list[str], prompt: str = "", number: int | None = None) -> Row:
    """Return a row as task `jsonl` reads it; a number distinguishes the ids of rows with one medium."""
    stem = row["medium"].stem
    asked = {"prompt": prompt} if prompt else {}
    id = stem if number is None else f"{stem}-{number}"
    return {"id": id, modality: str(row["medium"]), **asked, "targets": targets}


def _source(row: Row) -> str:
    return str(row["medium"].stem.split("-")[1])


def _sentences(captions: Iterable[str]) -> list[str]:
    """Captions without the spaces before their stops."""
    return [re.sub(r"\s+([.,!?;])", r"\1", caption).strip() for caption in captions]


def main() -> None:
    """Writes the files, and their names to the terminal."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for made in prepare(Path(sys.argv[1]), Path(sys.argv[2])):
        print(made)


if __name__ == "__main__":
    end_with(main)
