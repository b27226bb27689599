"""Readers of published data sets, all alike: awkward files, errors that lead to the row, canonical rows and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import published_media  # noqa: F401  adds its readers
from perceptune.config.registry import leaves
from perceptune.data.tasks.base import MediaSet, to_row
from perceptune.data.tasks.jsonl import JSONLines
from perceptune.errors import UserError
from perceptune.types import Sample
from published import READERS, Reader, zipped

pytestmark = pytest.mark.usefixtures("own_cache")

every_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
WRONG = [(label, *damage) for label, reader in READERS.items() for damage in reader.wrong]
EMPTY = [label for label, reader in READERS.items() if reader.empty]


def all_samples(reader: Reader, folder: Path, **options: object) -> dict[str, list[Sample]]:
    task = reader.open(folder, **options)
    return {split: list(task.samples(split)) for split in task.splits}


def test_every_reader_has_files() -> None:
    sets = {name for name, leaf in leaves("tasks").items() if issubclass(leaf.module.TASK, MediaSet)}
    assert sets == {reader.task for reader in READERS.values()}
    assert len(READERS) == 29


@every_reader
def test_samples_are_those_of_their_canonical_rows(reader: Reader, tmp_path: Path) -> None:
    folder = reader.write(tmp_path)
    for split, samples in all_samples(reader, folder).items():
        rows = folder / f"{split}.jsonl"
        rows.write_text("".join(json.dumps(to_row(sample, folder)) + "\n" for sample in samples), encoding="utf-8")
        read = JSONLines(JSONLines.Options(train=rows, allow_empty_prompt=True)).samples("train")
        assert list(read) == samples
        assert len(samples) >= 1


@every_reader
def test_byte_order_mark_crlf_and_gzip_change_nothing(reader: Reader, tmp_path: Path) -> None:
    plain = all_samples(reader, reader.write(tmp_path))
    assert all_samples(reader, reader.write(tmp_path, zipped)) == plain


@every_reader
def test_what_is_not_utf_8_is_refused(reader: Reader, tmp_path: Path) -> None:
    folder = reader.write(tmp_path)
    for name in reader.files:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + b"\xff" + whole[-1:])
        with pytest.raises(UserError, match=rf"{Path(name).name}.*not UTF-8"):
            all_samples(reader, folder)
        (folder / name).write_bytes(whole)


@every_reader
def test_a_file_that_is_not_there(reader: Reader, tmp_path: Path) -> None:
    folder = reader.write(tmp_path)
    for name in reader.files:
        (folder / name).rename(folder / f"{name}x")
        with pytest.raises(UserError, match=rf"no `{Path(name).name}`; did you mean "):
            all_samples(reader, folder)
        (folder / f"{name}x").rename(folder / name)


@every_reader
def test_missing_media_are_told_or_left_out(reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = reader.write(tmp_path)
    whole = all_samples(reader, folder)
    gone = folder / reader.media[-1]
    gone.unlink()
    with pytest.raises(UserError, match=rf"cannot read its \w+ .*{gone.name}: .* holds no `"):
        all_samples(reader, folder)
    assert all_samples(reader, folder, check_files=False) == whole
    task = reader.open(folder, skip_missing=1)
    for split in task.splits:
        left = [sample for sample in whole[split] if gone not in sample.media.values()]
        if left:
            assert list(task.samples(split)) == left
            told = f"{split}: 1 media are missing; {len(whole[split]) - len(left)} samples are left out\n"
            assert capsys.readouterr().err.endswith(told if len(left) < len(whole[split]) else "")
        else:
            with pytest.raises(UserError, match="holds no samples"):
                task.samples(split)


@every_reader
def test_media_may_lie_elsewhere_and_be_called_otherwise(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    folder = reader.write(tmp_path / "set")
    samples = reader.open(folder, media="../pictures", check_files=False).samples(reader.open(folder).splits[0])
    assert all(Path(str(medium)).is_relative_to(folder / "../pictures") for medium in samples[0].media.values())
    with pytest.raises(UserError, match=r"`template` '\{wrong\}.jpg' cannot be filled in: no `wrong`; "):
        all_samples(reader, folder, template="{wrong}.jpg")


@pytest.mark.parametrize(("label", "file", "old", "new", "message"), WRONG)
def test_an_error_names_file_and_row(label: str, file: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    reader = READERS[label]
    folder = reader.write(tmp_path)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=rf"(?s){Path(file).name}.*{message}"):
        all_samples(reader, folder)


@pytest.mark.parametrize("label", EMPTY)
def test_captions_without_text_are_refused_or_left_out(label: str, tmp_path: Path) -> None:
    reader = READERS[label]
    assert reader.empty is not None
    file, old, new = reader.empty
    folder = reader.write(tmp_path)
    whole = all_samples(reader, folder)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{file}.*holds no text"):
        all_samples(reader, folder)
    skipped = all_samples(reader, folder, skip_empty=True)
    assert len(skipped["train"]) == len(whole["train"]) - 1
    assert {sample.targets for sample in skipped["train"]} < {sample.targets for sample in whole["train"]}


def test_a_split_may_have_other_files(tmp_path: Path) -> None:
    reader = READERS["gqa vl-t5"]
    folder = reader.write(tmp_path)
    (folder / "train.json").rename(folder / "mine.json")
    task = reader.open(folder, annotations={"train": "mine.json", "extra": ["mine.json"]})
    assert task.splits == ("train", "validation", "testdev", "extra")
    assert task.samples("extra")[0].id == task.samples("train")[0].id
