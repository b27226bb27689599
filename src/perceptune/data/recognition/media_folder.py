"""The folder in which the media of a file of rows lie: beside it, unless it is given."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PureWindowsPath

from perceptune.data.media.suffixes import is_hidden
from perceptune.data.recognition.form import several
from perceptune.data.splits import split_in
from perceptune.data.tasks.base import is_file
from perceptune.errors import UserError
from perceptune.utils.paths import hint, local_name, shown_name

_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
_SUFFIXES = (".jpg", ".png", ".jpeg", ".wav", ".mp3", ".flac", ".mp4")
_LOOKED_AT = 20  # names that are searched
_FOLDERS = 500  # folders that are searched


def find_folder(names: Sequence[str], file: Path, given: str | None) -> Path | None:
    """Return the folder to which `names` are relative; None if it is the file's own, or none of them is a file's name.

    `given` is the folder that the user named. Raises `UserError` if they lie in no folder, or in several.
    """
    if given is not None:
        return Path(local_name(given))
    wanted = [local_name(name) for name in names if "://" not in name and not name.startswith("data:")]
    wanted = list(dict.fromkeys(wanted))[:_LOOKED_AT]
    if not wanted or all(Path(name).is_absolute() for name in wanted):
        return None
    beside, shown = file.absolute().parent, shown_name(wanted[0])
    if _OF_WINDOWS.match(wanted[0]):
        raise UserError(
            f"{file}: `{shown}` is a path of another computer: name media relative to one folder, such as "
            f"`{PureWindowsPath(wanted[0]).name}`"
        )
    counts: dict[Path, int] = {}
    for folders in (_near(beside), _far(beside)):
        counts |= {folder: sum(is_file(folder / name) for name in wanted) for folder in folders}
        if (best := max(counts.values())) == len(wanted):
            break  # files of the same names farther away belong to other data
    if best == 0:
        raise UserError(
            f"{file}: `{shown}` lies neither beside it nor in a folder near it{_cause(beside / wanted[0], counts)}: "
            "name the folder of its media by --media DIR (task.media)"
        )
    found = [folder for folder, count in counts.items() if count == best]
    if beside in found:
        return None
    same = [folder for folder in found if split_in(folder.name) == split_in(file.name)]
    if len(same) == 1 and split_in(file.name):  # COCO has the folders train2017 and val2017
        return same[0]
    some = [folder for folder, count in counts.items() if count]
    if 2 * best <= len(wanted) and len(some) > 1:
        raise UserError(
            f"{file}: its media lie in several folders, such as {some[0]} and {some[1]}: name them with their folders, "
            f"as `{some[0].name}/{shown}`"
        )
    if len(found) > 1 and len({(folder / wanted[0]).resolve() for folder in found}) > 1:
        raise several(file, [(f"`{shown}` lies in {folder}", f"--media {folder}") for folder in found[:4]])
    return found[0]


def _cause(file: Path, folders: Iterable[Path]) -> str:
    """Return why a medium is not found: its name lacks the suffix, or differs from that of a file in its spelling."""
    found = (folder / f"{file.name}{suffix}" for folder in folders for suffix in _SUFFIXES if not file.suffix)
    if (near := next(filter(is_file, found), None)) is not None:
        return f"; {near} is there, and names need their suffix"
    why = hint(file)
    return why if why.startswith(";") else ""


def _near(beside: Path) -> Iterator[Path]:
    """Yield the folder of a file, and those below it."""
    yield beside
    yield from islice(_below(beside, 2), _FOLDERS)


def _far(beside: Path) -> Iterator[Path]:
    """Yield the folder above that of a file, and those beside it."""
    if beside.parent != beside:
        yield beside.parent
        yield from (folder for folder in islice(_below(beside.parent, 1), _FOLDERS) if folder != beside)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        found = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    except OSError:  # without permission: media that lie there could not be read either
        return
    yield from found
    if depth > 1:
        for one in found:
            yield from _below(one, depth - 1)
