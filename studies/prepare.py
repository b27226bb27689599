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
CLASSES = "What is this sound?"


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


def flickr_captions(data: Path) -> Iterator[tuple[str, Row]]:
    """One row a photo, with its five captions."""
    for where, row in _rows(data / "flickr8k" / "metadata.jsonl"):
        yield row["split"], {"id": _stem(row), "image": _medium(where, row), "targets": _sentences(row["captions"])}


def photo_questions(data: Path) -> Iterator[tuple[str, Row]]:
    """Questions made by rules from the captions of the same photos; `fit` is of the splits `train` and `dev`."""
    photos: dict[str, list[tuple[Path, Row]]] = {"fit": [], "test": []}
    for where, row in _rows(data / "flickr8k" / "metadata.jsonl"):
        photos["test" if row["split"] == "test" else "fit"].append((where, row))
    for split, those in photos.items():
        for number, asked in enumerate(ask([row["captions"] for _, row in those], split)):
            where, row = those[asked.photo]
            yield split, {
                "id": f"{_stem(row)}-{number}", "image": _medium(where, row), "prompt": asked.question,
                "targets": [asked.answer], "answer_type": asked.kind,
            }  # fmt: skip


def daquar(data: Path) -> Iterator[tuple[str, Row]]:
    """A list of things is one answer, as in the published evaluation."""
    for number, (where, row) in enumerate(_rows(data / "daquar" / "metadata.jsonl")):
        yield row["split"], {
            "id": f"{_stem(row)}-{number}", "image": _medium(where, row), "prompt": row["question"],
            "targets": [row["answer"]],
        }  # fmt: skip


def sounds(data: Path) -> Iterator[tuple[str, Row]]:
    """ESC-50: of each class, the recordings of fold 4 are split by their source: the last two test, the others train.

    Clips of one source recording (the number in a clip's name) never lie in two splits.
    """
    for split, where, row in _sounds(data):
        yield split, {
            "id": _stem(row), "audio": _medium(where, row), "prompt": CLASSES,
            "targets": [row["category"].replace("_", " ")],
        }  # fmt: skip


def sound_sentences(data: Path) -> Iterator[tuple[str, Row]]:
    """The same clips with one fixed sentence a class."""
    for split, where, row in _sounds(data):
        yield split, {"id": _stem(row), "audio": _medium(where, row), "targets": [row["template_caption"]]}


def _sounds(data: Path) -> Iterator[tuple[str, Path, Row]]:
    kept = list(_rows(data / "esc50_subset" / "metadata.jsonl"))
    sources: dict[str, list[str]] = {}
    for _, row in kept:
        found = sources.setdefault(row["category"], [])
        if row["fold"] == 4 and _source(row) not in found:
            found.append(_source(row))
    for where, row in kept:
        tested = row["fold"] == 4 and _source(row) in sources[row["category"]][-2:]
        yield "test" if tested else "train", where, row


def digits(data: Path) -> Iterator[tuple[str, Row]]:
    """Spoken digits."""
    for where, row in _rows(data / "fsdd" / "metadata.jsonl"):
        yield row["split"], {
            "id": _stem(row), "audio": _medium(where, row), "prompt": "Which digit is spoken?",
            "targets": [row["transcript"]],
        }  # fmt: skip


def fights(data: Path) -> Iterator[tuple[str, Row]]:
    """Surveillance clips; every third source is a test source, so that no footage is in both splits."""
    kept = [(where, row, row["youtube"] or row["file"]) for where, row in _rows(data / "fight_surv" / "metadata.jsonl")]
    order = sorted({source for _, _, source in kept})
    for where, row, source in kept:
        yield "test" if order.index(source) % 3 == 2 else "train", {
            "id": _stem(row), "video": _medium(where, row), "prompt": row["question"], "targets": [row["answer"]],
        }  # fmt: skip


def sound_captions(data: Path) -> Iterator[tuple[str, Row]]:
    """AudioCaps' demonstration clips, all of its test split."""
    for where, row in _rows(data / "audiocaps_demo" / "metadata.jsonl"):
        yield "test", {"id": _stem(row), "audio": _medium(where, row), "targets": _sentences(row["captions"])}


def stamps(data: Path) -> Iterator[tuple[str, Row]]:
    """Pictures with a few words; all of them for test."""
    for where, row in _rows(data / "tuxpaint_stamps" / "metadata.jsonl"):
        image = str(where.parent / row["image"])
        yield "test", {"id": Path(row["image"]).stem, "image": image, "targets": _sentences(row["captions"])}


SETS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    "flickr8k": flickr_captions, "photo-questions": photo_questions, "daquar": daquar, "esc50": sounds,
    "esc50-captions": sound_sentences, "fsdd": digits, "fights": fights, "audiocaps": sound_captions, "stamps": stamps,
}  # fmt: skip


def _rows(path: Path) -> Iterator[tuple[Path, Row]]:
    if not path.is_file():
        raise UserError(f"{path} is not there: the first argument is the folder that holds `{path.parent.name}`")
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield path, json.loads(line)


def _medium(where: Path, row: Row) -> str:
    return str((where.parent / row["file"]).resolve())


def _stem(row: Row) -> str:
    return Path(row["file"]).stem


def _source(row: Row) -> str:
    return _stem(row).split("-")[1]


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
