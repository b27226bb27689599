"""Folders as data sets: by class, with metadata or a text beside each medium, of shards, or of tables."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from perceptune.data.build_task import data_keys
from perceptune.data.media.suffixes import PassedOver, is_hidden, modality_of, suffix_of, walk
from perceptune.data.recognition.form import Form, several, split_keys
from perceptune.data.recognition.joining import joined
from perceptune.data.splits import METADATA, SPLIT_NAMES, split_called, split_folders, split_in, split_of
from perceptune.errors import UserError

_TABLES = ("jsonl", "ndjson", "json", "csv", "tsv", "xlsx", "txt")
_ARROW = ("dataset_dict.json", "state.json")
# Texts about a data set, and the answers that a competition asks for.
_ABOUT = re.compile(r"readme|licen[cs]e|notes|changelog|requirements|sample_?submission", re.IGNORECASE)
_LOOKED_AT = 200_000  # files
_TRIED = 12  # tables in a folder
# Annotations of COCO that hold no texts.
_OTHER_TABLES = re.compile(r"instances|keypoints|image_info|panoptic|stuff_", re.IGNORECASE)

Inner = Callable[[Path, str], Form]  # recognises a file in the folder as a split


class SeveralTablesError(UserError):
    """Files of rows in a folder, of which any could be meant."""


class _Content(NamedTuple):
    """The files of a folder, counted by what they are."""

    media: list[Path]
    texts: dict[tuple[Path, str], Path]  # (folder, stem) -> text file
    tables: list[Path]  # files that may hold rows, in the folder itself or in one for tables
    shards: list[Path]
    parquet: list[Path]
    metadata: list[Path]
    others: Counter[str]


def folder_form(path: Path, split: str, inner: Inner) -> Form:
    """Return the form of a folder. Raises `UserError` for a folder without data, and for one with several readings."""
    outer = path
    while (inside := _wrapped(path)) is not None:
        path = inside
    form = _form_of(path, split, inner)
    return form if path == outer else replace(form, guesses=(f"all of it lies in {path}", *form.guesses))


def _form_of(path: Path, split: str, inner: Inner) -> Form:
    if any((path / name).is_file() for name in _ARROW):
        return _saved(path, split)
    content = _content(path)
    if content.metadata:
        return _folder(path, split, content, f"{_kinds(content.media)} with {content.metadata[0].name}")
    readings: list[tuple[Form, str]] = []
    if content.shards and not content.media:
        return _shards(path, split)
    if content.parquet and not content.media:
        return _saved(path, split)
    has_texts = _have_texts(content)
    stems = {(file.parent, file.stem) for file in content.media}
    tables = [table for table in content.tables if not has_texts or (table.parent, table.stem) not in stems]
    error: UserError | None = None
    if tables:
        try:
            form = _tabular(path, tables, split, inner)
            readings.append((form, f"--data {form.options.get(split, tables[0])}"))
        except UserError as caught:  # a text that is not a table, or a table that is damaged
            error = caught
    if has_texts:
        what = f"{_kinds(content.media)} with a text file beside each"
        keys = {**split_keys(split, path), "text_files": True}
        readings.append((Form(what, "folder", keys, answers="text", splits=(split,)),
                         "--task folder task.text_files=true"))  # fmt: skip
    elif _are_in_classes(path, content, readings, is_sure=not tables) and not isinstance(error, SeveralTablesError):
        what = f"{_kinds(content.media)} in folders named by class"
        readings.append((_folder(path, split, content, what, answers="folder"), "--task folder"))
    if len(readings) > 1:
        raise several(path, [(form.what, flags) for form, flags in readings])
    if readings:
        return readings[0][0]
    raise error or _nothing(path, content)


def _wrapped(path: Path) -> Path | None:
    """Return the only folder in `path` if it holds folders or tables itself, as an unpacked archive often does."""
    inside = [entry for entry in path.iterdir() if not is_hidden(entry.name) and not _is_about(entry)]
    if len(inside) != 1 or not inside[0].is_dir() or split_of(inside[0].name):
        return None
    found = [entry for entry in inside[0].iterdir() if not is_hidden(entry.name)]
    return inside[0] if any(entry.is_dir() or _is_table(entry) for entry in found) else None


def _is_about(file: Path) -> bool:
    return _ABOUT.fullmatch(file.stem) is not None and modality_of(file) is None and not file.is_dir()


def _is_table(file: Path) -> bool:
    return suffix_of(file.name.removesuffix(".gz")) in _TABLES and not _is_about(file)


def _content(path: Path) -> _Content:
    found, deeper = _Content([], {}, [], [], [], [], Counter()), []
    for file in islice(walk(path, PassedOver()), _LOOKED_AT):
        suffix = suffix_of(file.name.removesuffix(".gz"))
        if file.name in METADATA:
            found.metadata.append(file)
        elif modality_of(file) is not None:
            found.media.append(file)
        elif suffix == "tar":
            found.shards.append(file)
        elif suffix == "parquet":
            found.parquet.append(file)
        else:
            if suffix == "txt":
                found.texts[file.parent, file.stem] = file
            if _is_table(file) and file.parent in (path, path / "annotations"):
                found.tables.append(file)
            else:
                found.others[suffix] += 1
                deeper += [file] if _is_table(file) and file.parent.parent == path and suffix != "txt" else []
    if not found.tables:
        among_media = {file.parent for file in found.media}
        found.tables.extend(file for file in deeper if file.parent not in among_media)
    return found


def _are_in_classes(
    path: Path, content: _Content, readings: Sequence[tuple[Form, str]], *, is_sure: bool
) -> bool:  # fmt: skip
    """Return whether the folders of media could be classes: those of a file's rows often lie in one folder.

    Folders that are all called as splits are, such as `train2017`, are none. Unless `is_sure`, one class is not enough.
    """
    if any("annotations" in form.options for form, _ in readings):
        return False  # of a published set, whose folders are known
    folders = {file.parent for file in content.media if file.parent != path}
    return len(folders) > (0 if is_sure else 1) and not all(split_in(folder.name) for folder in folders)


def _have_texts(content: _Content) -> bool:
    """Return whether half of the media or more have a text file of the same stem beside them."""
    count = sum((file.parent, file.stem) in content.texts for file in content.media)
    return count > 0 and 2 * count >= len(content.media)


def _folder(path: Path, split: str, content: _Content, what: str, *, answers: str = "") -> Form:
    found = split_folders(path) if split == "train" else {}
    if not found:
        return Form(what, "folder", split_keys(split, path), answers=answers, splits=(split,))
    keys = {name: str(place) for name, place in found.items() if _has_targets(place, content)}
    if "train" not in keys:
        raise UserError(f"{path} holds the split {_listed(keys or found)}, and none to train on: call one `train`")
    missing = [str(place) for name, place in found.items() if name not in keys]
    guesses = tuple(f"{place} is left out, as nothing says what its media show" for place in missing)
    return Form(
        f"{what}, with the splits {_listed(keys)}", "folder", keys, guesses=guesses, answers=answers, splits=tuple(keys)
    )


def _has_targets(place: Path, content: _Content) -> bool:
    """Return whether a split's folder holds metadata, or folders of classes where there is none at all."""
    if content.metadata:
        return any(place in file.parents for file in content.metadata)
    return any(place in file.parents and file.parent != place for file in content.media)


def _shards(path: Path, split: str) -> Form:
    """Return the form of a folder of shards, whose reader tells several splits apart by their names."""
    keys = data_keys("webdataset", str(path), split)
    splits = tuple(name for name in SPLIT_NAMES if name in keys) if split == "train" else (split,)
    named = f", with the splits {_listed(splits)}" if len(splits) > 1 else ""
    return Form(f"WebDataset shards{named}", "webdataset", keys, splits=splits)


def _saved(path: Path, split: str) -> Form:
    """Return the form of a data set of `datasets`: its splits are named as it names them."""
    from perceptune.data.hf_files import local_splits

    names = local_splits(path)
    options: dict[str, Any] = {"path": str(path)}
    by_role = {role: name for role in SPLIT_NAMES if (name := split_called(role, names, str(path)))}
    guesses: tuple[str, ...] = ()
    if split != "train":
        chosen = by_role.get(split) or by_role.get("test") or (names[0] if names else "train")
        options |= {"train": chosen, split: chosen}
    elif "train" in by_role or not names:
        options |= by_role
    elif by_role and len(names) > 1:
        raise UserError(f"{path} holds the splits {_listed(names)}, none of them called `train`: name one to train on "
                        f"by --task hf-dataset task.train={names[0]}")  # fmt: skip
    else:
        options["train"] = names[0]
        guesses = (f"split `{names[0]}` of {_listed(names)} (task.train)",) if len(names) > 1 else ()
    splits = tuple(name for name in SPLIT_NAMES if name in options)
    splits = splits if split == "train" else (split,)
    return Form("a data set of `datasets`", "hf-dataset", options, guesses, splits=splits)


def _tabular(path: Path, tables: Sequence[Path], split: str, inner: Inner) -> Form:
    """Return the form of a folder's only file of rows, or of its files `train`, `validation` and `test`."""
    tables = [table for table in tables if not _is_answers_to(table, tables)]
    tables = [table for table in tables if not _OTHER_TABLES.search(table.name)] or tables
    by_split = _by_split(tables)
    if split != "train" and split in by_split:
        return inner(by_split[split], split)
    if len(tables) > 1 and (len(by_split) != len(tables) or "train" not in by_split):
        tables = _readable(tables, split, inner)
        by_split = _by_split(tables)
    if len(tables) == 1:
        form = inner(tables[0], split)
        return replace(form, what=f"{form.what}, {tables[0].name}")
    if len(by_split) != len(tables) or "train" not in by_split:
        raise SeveralTablesError(str(several(path, [(table.name, f"--data {table}") for table in tables[:6]])))
    forms = {name: inner(file, name) for name, file in by_split.items()}
    unlabelled = [name for name, one in forms.items() if forms["train"].answers and not one.answers]
    form = joined({name: one for name, one in forms.items() if name not in unlabelled})
    guesses = (f"{by_split[name]} is left out, as it has no answers" for name in unlabelled)
    return replace(form, guesses=(*form.guesses, *guesses))


def _by_split(tables: Sequence[Path]) -> dict[str, Path]:
    return {name: file for name in SPLIT_NAMES for file in tables if split_in(file.name) == name}


def _readable(tables: Sequence[Path], split: str, inner: Inner) -> list[Path]:
    """Return those of a folder's first files that hold rows with media. Raises the first's `UserError` if none does."""
    found, errors = [], []
    for table in tables[:_TRIED]:
        try:
            inner(table, split)
        except UserError as error:
            errors.append(error)
        else:
            found.append(table)
    if not found:
        raise errors[0]
    return [*found, *tables[_TRIED:]]


def _is_answers_to(table: Path, tables: Sequence[Path]) -> bool:
    """Return whether a file of VQA's annotations has its questions beside it, whose reader takes both."""
    return "annotations" in table.name and any("questions" in other.name for other in tables)


def _kinds(media: Sequence[Path]) -> str:
    """Return the modalities of media as words, the most frequent one first."""
    words = {"image": "images", "audio": "audio", "video": "videos"}
    counts = Counter(words[str(modality_of(file))] for file in media)
    return " and ".join(word for word, _ in counts.most_common()) or "media"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _nothing(path: Path, content: _Content) -> UserError:
    if content.media:
        count = len(content.media)
        return UserError(
            f"{path}: {count:,} {_kinds(content.media)} without any text to learn: put each into a folder named after "
            "its class, or a text file of the same name beside it, or write a metadata.csv with the columns file_name "
            "and text"
        )
    counts = content.others.most_common(4)
    suffixes = ", ".join(f"{count:,} {f'.{suffix}' if suffix else 'without a suffix'}" for suffix, count in counts)
    advice = "; unpack the archive" if content.others.keys() & {"zip", "tgz", "gz", "7z", "rar"} else ""
    return UserError(f"{path} holds no media and no file of rows{f' (but {suffixes})' if suffixes else ''}{advice}")
