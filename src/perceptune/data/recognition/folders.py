"""Folders as data sets: by class, with metadata or a text beside each medium, of shards, or of tables."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from perceptune.data.media.suffixes import PassedOver, modality_of, suffix_of, walk
from perceptune.data.recognition.form import Form, several
from perceptune.data.splits import METADATA, SPLIT_NAMES, split_called, split_folders, split_in
from perceptune.errors import UserError

_TABLES = ("jsonl", "ndjson", "json", "csv", "tsv", "xlsx", "txt")
_ARROW = ("dataset_dict.json", "state.json")
_ABOUT = ("readme", "license", "licence", "notes", "changelog", "requirements")  # texts about a data set
_LOOKED_AT = 200_000  # files

Inner = Callable[[Path, str], Form]  # recognises a file in the folder as a split


class _Content(NamedTuple):
    """The files of a folder, counted by what they are."""

    media: list[Path]
    texts: dict[tuple[Path, str], Path]  # (folder, stem) -> text file
    tables: list[Path]  # files that may hold rows, in the folder itself
    shards: list[Path]
    parquet: list[Path]
    metadata: list[Path]
    others: Counter[str]


def folder_form(path: Path, split: str, inner: Inner) -> Form:
    """Return the form of a folder. Raises `UserError` for a folder without data, and for one with several readings."""
    if any((path / name).is_file() for name in _ARROW):
        return _saved(path, split)
    content = _content(path)
    if content.metadata:
        return _folder(path, split, f"{_kinds(content.media)} with {content.metadata[0].name}")
    readings: list[tuple[Form, str]] = []
    if content.shards and not content.media:
        return Form("WebDataset shards", "webdataset", _keys(split, path), splits=(split,))
    if content.parquet and not content.media:
        return _saved(path, split)
    has_texts = _have_texts(content)
    stems = {(file.parent, file.stem) for file in content.media}
    tables = [table for table in content.tables if not has_texts or (table.parent, table.stem) not in stems]
    error: UserError | None = None
    if tables:
        try:
            form = _tabular(path, tables, split, inner)
            readings.append((form, f"--data {tables[0]}"))
        except UserError as caught:  # a text that is not a table, or a table that is damaged
            error = caught
    if has_texts:
        what = f"{_kinds(content.media)} with a text file beside each"
        keys = {**_keys(split, path), "text_files": True}
        readings.append((Form(what, "folder", keys, answers="text", splits=(split,)),
                         "--task folder task.text_files=true"))  # fmt: skip
    elif _are_in_classes(path, content, readings):
        what = f"{_kinds(content.media)} in folders named by class"
        readings.append((_folder(path, split, what, answers="folder"), "--task folder"))
    if len(readings) > 1:
        raise several(path, [(form.what, flags) for form, flags in readings])
    if readings:
        return readings[0][0]
    raise error or _nothing(path, content)


def _content(path: Path) -> _Content:
    found = _Content([], {}, [], [], [], [], Counter())
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
            is_near = file.parent in (path, path / "annotations")
            if suffix in _TABLES and is_near and file.stem.lower() not in _ABOUT:
                found.tables.append(file)
            else:
                found.others[suffix] += 1
    return found


def _are_in_classes(path: Path, content: _Content, readings: Sequence[tuple[Form, str]]) -> bool:
    """Return whether the folders of media could be classes: those of a file's rows often lie in one folder."""
    if any("annotations" in form.options for form, _ in readings):
        return False  # of a published set, whose folders are known
    folders = {file.parent for file in content.media if file.parent != path}
    if readings and all(split_in(folder.name) for folder in folders):
        return False  # the media of splits
    return len(folders) > (1 if readings else 0)


def _have_texts(content: _Content) -> bool:
    """Return whether half of the media or more have a text file of the same stem beside them."""
    count = sum((file.parent, file.stem) in content.texts for file in content.media)
    return count > 0 and 2 * count >= len(content.media)


def _folder(path: Path, split: str, what: str, *, answers: str = "") -> Form:
    found = split_folders(path) if split == "train" else {}
    if not found:
        return Form(what, "folder", _keys(split, path), answers=answers, splits=(split,))
    keys = {name: str(place) for name, place in found.items()}
    if "train" not in keys:
        raise UserError(f"{path} holds the split {_listed(keys)}, and none to train on: call one `train`")
    return Form(f"{what}, with the splits {_listed(keys)}", "folder", keys, answers=answers, splits=tuple(keys))


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
    if len(tables) == 1:
        return inner(tables[0], split)
    by_split = {name: file for name in SPLIT_NAMES for file in tables if split_in(file.name) == name}
    if split != "train" and split in by_split:
        return inner(by_split[split], split)
    if len(by_split) != len(tables) or "train" not in by_split:
        raise several(path, [(table.name, f"--data {table}") for table in tables[:6]])
    return joined({name: inner(file, name) for name, file in by_split.items()})


def _is_answers_to(table: Path, tables: Sequence[Path]) -> bool:
    """Return whether a file of VQA's annotations has its questions beside it, whose reader takes both."""
    return "annotations" in table.name and any("questions" in other.name for other in tables)


def joined(forms: Mapping[str, Form]) -> Form:
    """Join forms of the splits of one data set. Raises `UserError` if they have different readers."""
    form = forms["train"]
    for name, one in forms.items():
        if one.reader != form.reader:
            what = f"split `{name}` is {one.what} ({one.reader}), split `train` is {form.what} ({form.reader})"
            raise UserError(f"{what}: convert one of them by `data convert`")
    is_published = "annotations" in form.options
    options = _annotations(forms) if is_published else {name: one.options[name] for name, one in forms.items()}
    folders = {name: _media_folder(one, name) for name, one in forms.items()}
    if len({*folders.values()}) > 1 and (is_published or any("media" in one.options for one in forms.values())):
        options["media"] = folders
    return replace(form, options={**form.options, **options}, splits=tuple(forms))


def _annotations(forms: Mapping[str, Form]) -> dict[str, Any]:
    """Return the annotation files of a published set's splits, absolute ones of another folder than the first's."""
    first, found = forms["train"].options, dict[str, Any]()
    for name, one in forms.items():
        files, place = one.options["annotations"][name], Path(one.options["dir"])
        if one.options["dir"] != first["dir"]:
            files = str(place / files) if isinstance(files, str) else [str(place / file) for file in files]
        found[name] = files
    unused: dict[str, list[str]] = {name: [] for name in first["annotations"] if name not in found}
    return {"annotations": found | unused}


def _media_folder(form: Form, split: str) -> str:
    """Return the folder that names of a split's media are relative to."""
    own = form.options["dir"] if "dir" in form.options else Path(form.options[split]).parent
    return str(Path(form.options.get("media") or own).absolute())


def _keys(split: str, path: Path) -> dict[str, str]:
    return {"train": str(path), **({split: str(path)} if split != "train" else {})}


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
    suffixes = ", ".join(f"{count:,} .{suffix}" for suffix, count in content.others.most_common(4))
    return UserError(f"{path} holds no media and no file of rows{f' (but {suffixes})' if suffixes else ''}")
