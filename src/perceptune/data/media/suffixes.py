"""Which files are media, by the last part of their names: the one list for folders, shards and pages."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

MEDIA = {
    "image": ("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "bmp", "tif", "tiff", "avif", "heic", "heif"),
    "audio": (
        *("flac", "wav", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aif", "aiff", "au", "caf", "wma", "amr", "ac3"),
        *("w64", "mka"),
    ),
    "video": (
        *("mp4", "webm", "mkv", "mov", "avi", "gif", "m4v", "mpg", "mpeg", "mts", "m2ts", "flv", "wmv", "ogv", "3gp"),
    ),
}
MODALITIES = tuple(MEDIA)
EITHER = "gif"  # an image or a video
_KINDS = {suffix: modality for modality, suffixes in MEDIA.items() for suffix in suffixes}
# What systems and programs leave in folders, beside names that begin with a dot.
_SYSTEM = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "#snapshot", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information", "__pycache__"),
}
MAX_PIXELS = 64_000_000  # of an image that is decoded; here, so that the command line can name it without Pillow


def suffix_of(name: str | PurePath) -> str:
    """The last part of a name, in lower case and without its dot."""
    return PurePath(name).suffix.lower().removeprefix(".")


def modality_of(name: str | PurePath, among: Collection[str] = MODALITIES) -> str | None:
    """What a file of this name is, one of `among`; None for another file. A GIF is a video where videos are wanted."""
    suffix = suffix_of(name)
    if suffix == EITHER and "video" not in among:
        return "image" if "image" in among else None
    kind = _KINDS.get(suffix)
    return kind if kind in among else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or a program, not to the user."""
    steps = {".", ".."}  # of a path, not names
    return (name.startswith(".") and name not in steps) or name.lower() in _SYSTEM


class PassedOver:
    """What was found in a folder and not read, by suffix."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()  # hidden files and system folders

    def add(self, name: str) -> None:
        """Notes a file."""
        self.suffixes[suffix_of(name)] += 1

    def __bool__(self) -> bool:
        return bool(+self.suffixes or +self.hidden)

    def __str__(self) -> str:
        """Such as `passed over: 3 .xyz, 1 without a suffix, 2 hidden or system files`; empty if there is nothing."""
        parts = [
            f"{count:,} {f'.{suffix}' if suffix else 'without a suffix'}"
            for suffix, count in sorted(self.suffixes.items(), key=lambda one: (-one[1], one[0]))
        ]
        parts += [f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in sorted((+self.hidden).items())]
        return f"passed over: {', '.join(parts)}" if parts else ""


def walk(folder: Path, passed: PassedOver, _above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """All files below a folder in a fixed order, one folder's names at a time; hidden ones are noted in `passed`.

    Links to folders are followed, but not back to where they lie in. Raises `OSError` for what cannot be listed.
    """
    about = folder.stat()
    own = (about.st_dev, about.st_ino)
    if own in _above:
        return
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries)
    for kind, is_folder in (("file", False), ("folder", True)):
        names = [name for name, one in found if one == is_folder]
        passed.hidden[f"hidden or system {kind}"] += sum(map(is_hidden, names))
        for name in names:
            if is_hidden(name):
                continue
            if is_folder:
                yield from walk(folder / name, passed, (*_above, own))
            else:
                yield folder / name
