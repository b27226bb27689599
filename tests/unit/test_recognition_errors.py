"""What cannot be settled is one error that says what settles it, for a training and for a check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from forms import COUNT, caption, color, lines, picture, pictures, sound, table, write
from perceptune.cli.commands.train import training_recipe
from perceptune.cli.main import parser
from perceptune.cli.parsing import place_overrides
from perceptune.config.hold_out import HoldOutConfig
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.holdout_split import HoldoutSplit
from perceptune.data.recognition.task_keys import recognize_task
from perceptune.errors import UserError
from perceptune.tools.datasets.validate import validate_dataset

pytestmark = pytest.mark.usefixtures("own_cache")


def rows(names: list[str], columns: str = "image,caption") -> bytes:
    return table([columns.split(","), *([name, caption(n)] for n, name in enumerate(names))])


def csv_of(folder: Path, names: list[str], columns: str = "image,caption") -> Path:
    pictures(folder)
    return write(folder / "rows.csv", rows(names, columns))


def no_header(folder: Path) -> Path:
    return write(folder / "rows.csv", rows(pictures(folder)).partition(b"\r\n")[2])


def names_as_keys(folder: Path) -> Path:
    return write(folder / "rows.json", json.dumps(dict.fromkeys(pictures(folder), "a dot")))


def other_computer(folder: Path) -> Path:
    return csv_of(folder, [rf"C:\Users\me\{n}.png" for n in range(COUNT)])


def without_suffix(folder: Path) -> Path:
    return csv_of(folder, [str(n) for n in range(COUNT)])


def white_space(folder: Path) -> Path:
    pictures(folder)
    return write(folder / "rows.jsonl", lines([{"image": "1.png\n", "caption": "a dot"}]))


def in_several_folders(folder: Path) -> Path:
    for n in range(COUNT):
        write(folder / f"photos/{color(n)}/{n}.png", picture(n))
    return write(folder / "rows.csv", rows([f"{n}.png" for n in range(COUNT)]))


def mixed_media(folder: Path) -> Path:
    write(folder / "1.wav", sound(1))
    return csv_of(folder, ["1.wav", "2.png"], "path,caption")


def no_media(folder: Path) -> Path:
    return write(folder / "rows.csv", "question,answer\nwhich?,one\n")


def archive(folder: Path) -> Path:
    write(folder / "photos.zip", b"PK\3\4")
    return folder


def on_a_hub(folder: Path) -> Path:
    return Path("somebody/flowers")


def unknown(folder: Path) -> Path:
    return write(folder / "data.pdf", b"%PDF-1.4\n")


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def empty_lines(folder: Path) -> Path:
    return write(folder / "rows.jsonl", "\n\n")


def broken_lines(folder: Path) -> Path:
    return write(folder / "rows.jsonl", "{'image': '1.png'}\n")


def classes_and_table(folder: Path) -> Path:
    names = [f"{color(n)}/{n}.png" for n in range(COUNT)]
    for n, name in enumerate(names):
        write(folder / name, picture(n))
    write(folder / "labels.csv", rows(names))
    return folder


def two_texts(folder: Path) -> Path:
    values = [["image", "label", "caption"], *([n, "red", "a dot"] for n in pictures(folder))]
    return write(folder / "rows.csv", table(values))


UNSETTLED: list[tuple[Callable[[Path], Path], str]] = [
    (no_header, r"`0\.png` stands where the name of a column is expected: .* a line of names, such as `image,caption`"),
    (names_as_keys, r'`0\.png` stands where .*in JSON a row is \{"image": \.\.\., "caption": \.\.\.\}'),
    (other_computer, r"`C:.*0\.png` is a path of another computer: .* relative to one folder, such as `0\.png`"),
    (without_suffix, r"`0` lies neither .*0\.png is there, and names need their suffix: .*--media DIR"),
    (white_space, r"`1\.png\\n` lies neither .*other white space around it: `1\.png`"),
    (in_several_folders, r"its media lie in several folders, .*: name them with their folders, as `\w+/0\.png`"),
    (mixed_media, r"column `path` holds media of several kinds \(audio, image\): each needs a column of its own"),
    (no_media, r"no column holds media \(such as `1\.jpg`\) among `question`, `answer`: name one by task"),
    (archive, r"holds no media and no file of rows \(but 1 \.zip\); unpack the archive"),
    (on_a_hub, r"somebody/flowers.*; a data set of a hub is read by --task hf-dataset"),
    (unknown, r"data\.pdf is a PDF file; data is a folder, JSON, CSV, TSV"),
    (empty, r"data holds no media and no file of rows"),
    (empty_lines, r"rows\.jsonl holds no rows"),
    (broken_lines, r"rows\.jsonl, line 1: invalid JSON: .*double quotes"),
    (classes_and_table, r"in several ways.*CSV table, labels\.csv: --data .*labels\.csv; .*: --task folder"),
    (two_texts, r"`caption` and `label` could both be meant: choose by task\.target_key=caption or "),
]


@pytest.mark.parametrize(("make", "said"), UNSETTLED, ids=[make.__name__ for make, _ in UNSETTLED])
def test_what_cannot_be_read_is_one_line(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    place = make(tmp_path / "data")
    with pytest.raises(UserError, match=said) as caught:
        recognize_task(str(place))
    assert "\n" not in str(caught.value)


def mixed(folder: Path) -> Path:
    values = [{"image": name, "targets": "red", "prompt": "which?"} for name in pictures(folder)]
    del values[0]["prompt"]
    return write(folder / "rows.jsonl", lines(values))


def one_class(folder: Path) -> Path:
    pictures(folder / "cat")
    return folder


def no_medium(folder: Path) -> Path:
    return write(folder / "rows.jsonl", lines([{"image": None, "prompt": "which?", "targets": "one"}]))


OPEN: list[tuple[Callable[[Path], Path], str, str]] = [
    (mixed, "captions and questions mixed: 1 of 24 rows have no question: give them one by task.prompt=TEXT", "prompt"),
    (one_class, "one class only, `cat`: .*captions are said by task.metric=CIDEr", "one class only"),
    (no_medium, "no sample has a medium", "no sample has a medium"),
]


@pytest.mark.parametrize(("make", "said", "checked"), OPEN, ids=[make.__name__ for make, *_ in OPEN])
def test_what_is_open_is_refused_and_found_by_the_check(
    make: Callable[[Path], Path], said: str, checked: str, tmp_path: Path
) -> None:
    place = str(make(tmp_path / "data"))
    with pytest.raises(UserError, match=said):
        train(place)
    found = validate_dataset(place)
    assert not found.clean
    assert all(checked in line for kind in found.report["problems"].values() for line in kind["first"])


# What is held out


def train(*words: str) -> dict[str, object]:
    """The recipe of a training, which is not run."""
    options, rest = parser().parse_known_args(["train", "--data", *words])
    place_overrides(options, rest)
    recipe, _ = training_recipe(options)
    assert isinstance(recipe, dict)
    return recipe


def test_fewer_than_20_media_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    place = str(write(tmp_path / "rows.csv", rows(pictures(tmp_path)[:19])))
    with pytest.raises(UserError, match=r"19 media, too few .*--validation, or .* by train\.hold_out=null"):
        train(place)
    assert train(place, "train.hold_out=null")["train"].get("hold_out") is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (r"\.(png)$", r"hold_out.group_by"),  # all media in one group
        (r"^(nothing)", r"hold_out.group_by"),  # no name matches
    ],
)
def test_a_group_that_covers_everything_or_nothing_is_an_error(group: str, said: str, tmp_path: Path) -> None:
    recipe = train(str(write(tmp_path / "rows.csv", rows(pictures(tmp_path)))), "--group-by", group)
    held_out = HoldOutConfig.model_validate(recipe["train"]["hold_out"])  # type: ignore[index]
    with pytest.raises(UserError, match=said):
        HoldoutSplit(task_of(NamedPart(**recipe["task"])), held_out).samples("train")  # type: ignore[arg-type]
