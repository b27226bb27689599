"""Splits by the names that folders, files and data sets usually give them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from perceptune.data.media.suffixes import PassedOver, is_hidden, modality_of, walk
from perceptune.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def split_of(name: str) -> str | None:
    """Return the split that is usually called `name`, in any letter case; None if there is none."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def split_called(key: str, names: Sequence[str], place: str) -> str | None:
    """Return the split among `names` that is usually called `key`. Raises `UserError` if there are two."""
    found = [name for name in names if split_of(name) == key]
    if len(found) > 1 and key not in found:
        raise UserError(f"{place}: {' and '.join(f'`{name}`' for name in found)} could both be the split `{key}`")
    return key if key in found else next(iter(found), None)


def split_in(name: str) -> str | None:
    """Return the split that is a word of a file's name, such as of `captions_val2017.json`; None if there is none."""
    words = "".join(letter if letter.isalpha() else " " for letter in name).split()
    return next((split for word in words if (split := split_of(word))), None)


def split_folders(path: Path) -> dict[str, Path]:
    """Return the folders in `path` that are its splits, in the order of `SPLIT_NAMES`; empty if there are none.

    A folder called `train` may be a class, such as beside `bus` and `car`. Folders are splits if there are several with
    such names, or one alone, and nothing else holds media or these hold folders of media or metadata. Raises
    `UserError` if two could be the same split.
    """
    if not path.is_dir():
        return {}
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    named = [folder for folder in folders if split_of(folder.name)]
    if not named or any((path / name).is_file() for name in METADATA):
        return {}
    full = [folder for folder in named if any(_content(folder))]
    alone = all(folder in named or not any(_content(folder)) for folder in folders)
    nested = any(map(_is_nested, full))
    if not (alone or (nested and len(full) > 1)) or (len(full) == 1 and not nested):
        return {}
    found: dict[str, Path] = {}
    for split in SPLIT_NAMES:
        some = [folder for folder in full if split_of(folder.name) == split]
        if len(some) > 1:
            names = " and ".join(f"`{folder.name}`" for folder in some)
            raise UserError(f"{path}: {names} could both be the split `{split}`: give one of them as `{split}`")
        if some:
            found[split] = some[0]
    return found


def _content(folder: Path) -> Iterator[Path]:
    """Yield the media and metadata below a folder."""
    return (file for file in walk(folder, PassedOver()) if file.name in METADATA or modality_of(file))


def _is_nested(folder: Path) -> bool:
    """Return whether a folder holds metadata, or media in folders of its own."""
    return any(file.name in METADATA or file.parent != folder for file in _content(folder))
