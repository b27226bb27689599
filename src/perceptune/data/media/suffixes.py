"""Suffixes of media files: the only list, for folders, shards and web pages."""

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
# Files of systems and programs in folders, besides names that begin with a dot.
_SYSTEM = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "#snapshot", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information", "__pycache__"),
}
MAX_MIB = {"image": 24, "audio": 25, "video": 64}  # of a medium from elsewhere: in a request or at an address
MAX_PIXELS = 64_000_000  # of a decoded image; here, so that the command line can use it without importing Pillow


def suffix_of(name: str | PurePath) -> str:
    """Return the suffix of a name in lower case without its dot."""
    return PurePath(name).suffix.lower().removeprefix(".")


def modality_of(name: str | PurePath, among: Collection[str] = MODALITIES) -> str | None:
    """Return the modality of a file by its name, if it is `among` the given ones. A GIF is a video if those are."""
    suffix = suffix_of(name)
    if suffix == EITHER and "video" not in among:
        return "image" if "image" in among else None
    kind = _KINDS.get(suffix)
    return kind if kind in among else None


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or belongs to a system or program."""
    steps = {".", ".."}  # of a path, not names
    return (name.startswith(".") and name not in steps) or name.lower() in _SYSTEM


class PassedOver:
    """Counts of skipped files of a folder by suffix."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()  # hidden files and system folders

    def add(self, name: str) -> None:
        """Count a skipped file."""
        self.suffixes[suffix_of(name)] += 1

    def __bool__(self) -> bool:
        return bool(+self.suffixes or +self.hidden)

    def __str__(self) -> str:
        """Return text such as `passed over: 3 .xyz, 1 without a suffix, 2 hidden or system files`; empty if none."""
        parts = [
            f"{count:,} {f'.{suffix}' if suffix else 'without a suffix'}"
            for suffix, count in sorted(self.suffixes.items(), key=lambda one: (-one[1], one[0]))
        ]
        parts += [f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in sorted((+self.hidden).items())]
        return f"passed over: {', '.join(parts)}" if parts else ""


def walk(folder: Path, passed: PassedOver, _above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield all files below a folder in a fixed order, one folder at a time; hidden ones are counted in `passed`.

    Links to folders are followed unless they form a cycle. Raises `OSError` for a folder that cannot be listed.
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
