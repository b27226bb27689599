"""easy-VQA (Zhou, 2020): questions about the shape and colour of one drawn figure; 13 answers."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perceptune.data.metrics.base import Scored, averages
from perceptune.data.tasks.base import Task, check_split, exact_match, reading
from perceptune.errors import UserError
from perceptune.types import Sample
from perceptune.utils import downloads
from perceptune.utils.paths import absolute


class EasyVQA(Task):
    """The authors' train/test split, with the training samples in the authors' order."""

    class Options(Task.Options):
        """`data` is a folder of the same layout; by default that of the wheel `easy-vqa`."""

        data: Path | None = None

    data_option = "data"
    splits = ("train", "test")
    metric = "accuracy"
    lowercase = True
    first_line = True

    def __init__(self, options: Options) -> None:
        self._data = options.data

    def read_from(self, split: str) -> frozenset[str]:
        return frozenset([f"{absolute(str(self._data)) if self._data else 'easy-vqa'}#{split}"])

    def samples(self, split: str) -> list[Sample]:
        check_split(split, self.splits)
        folder = (self._data or downloads.path("easy-vqa")) / split
        images = _images(folder / "images")
        return [
            _sample(row, images, id=f"{split}-{index:06d}", where=f"{folder / 'questions.json'}, row {index}")
            for index, row in enumerate(_rows(folder / "questions.json"))
        ]

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """Add `accuracy_open`, without the yes/no questions, and `accuracy_yes_no_even`.

        The latter is over yes/no questions balanced for each wording: without the image at most half of them can be
        answered correctly.
        """
        scored = exact_match(self, predictions, samples)
        for row, sample in zip(scored.per_sample, samples, strict=True):
            if sample.meta["answer_type"] != "yes/no":
                row["accuracy_open"] = row["accuracy"]
        for index in _even(samples):
            scored.per_sample[index]["accuracy_yes_no_even"] = scored.per_sample[index]["accuracy"]
        return replace(scored, summary=averages(scored.per_sample))


TASK = EasyVQA


def _rows(path: Path) -> list[object]:
    with reading(f"the questions in {path}", ValueError):
        rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a list of [question, answer, image number]")
    return rows


def _images(folder: Path) -> dict[int, Path]:
    """Return image number -> file, by listing the folder once instead of checking 4,000 files."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    return {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdecimal()}


def _sample(row: object, images: dict[int, Path], *, id: str, where: str) -> Sample:
    match row:
        case [str(question), str(answer), int(number)]:
            if number not in images:
                raise UserError(f"{where}: there is no images/{number}.png")
            meta = {"answer_type": _answer_type(question, answer)}
            return Sample(id, {"image": images[number]}, question, (answer,), meta)
    raise UserError(f"{where}: expected [question, answer, image number], got {row!r:.120}")


def _even(samples: Sequence[Sample]) -> list[int]:
    """Return the indices of the first yes/no questions of each wording, the same number with each answer."""
    found: defaultdict[str, dict[str, list[int]]] = defaultdict(lambda: {"yes": [], "no": []})
    for index, sample in enumerate(samples):
        if sample.meta["answer_type"] == "yes/no":
            found[sample.prompt][sample.targets[0]].append(index)
    fewer = [(both, min(map(len, both.values()))) for both in found.values()]
    return sorted(index for both, n in fewer for indices in both.values() for index in indices[:n])


def _answer_type(question: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "color" if "color" in question else "shape"
