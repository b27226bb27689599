"""Paths as users write them, and explanations for paths that do not exist."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

# Names compared when a file is missing; folders of data sets hold hundreds of thousands.
_MAX_NAMES = 20_000
_MAX_SHOWN = 120  # characters of a name


def local_name(name: str) -> str:
    """Convert `file:///...` and a leading `~/` to a path of the system; return any other name unchanged."""
    match = re.match(r"file:(?://(?:localhost)?)?(?=/(?!/))", name, re.IGNORECASE)
    if match:
        return unquote(name[match.end() :])
    return str(Path(name).expanduser()) if name.startswith("~/") else name


def given_path(name: str) -> Path:
    """Return the path that a user gave as `name`."""
    return Path(local_name(name))


class Absence(NamedTuple):
    """Why a path does not exist: its last existing folder, the name that is missing in it, and the cause."""

    folder: Path
    name: str
    link: str  # target of the broken link of this name; empty if there is none
    hint: str  # suggestion such as `; did you mean ...?`; empty if no name is similar
    is_guess: bool = False  # whether the hint is only the most similar name

    def why(self) -> str:
        """Return the explanation as a clause of a message."""
        shown = f"`{shown_name(self.name)}`"
        if self.link:
            return f"{shown} in {self.folder} is a link to {shown_name(self.link)}, which is not there"
        return f"{self.folder} holds no {shown}{self.hint}"


def absence(path: Path) -> Absence:
    """Find the missing part of a path that does not exist. Raises `OSError` for a folder that cannot be listed."""
    name, folder = path.name, path.absolute().parent
    while not folder.is_dir() and folder != folder.parent:
        name, folder = folder.name, folder.parent
    if (folder / name).is_symlink():
        return Absence(folder, name, str((folder / name).readlink()), "")
    names = _names(folder, folder.stat().st_mtime_ns)
    if cause := _cause(folder, name, names):
        return Absence(folder, name, "", f"; {cause}")
    # `nearest` would list a folder of thousands when no name is close.
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return Absence(folder, name, "", f"; did you mean `{shown_name(close[0])}`?" if close else "", is_guess=True)


def hint(path: Path) -> str:
    """Return the text after `no such file` in a message about `path`; empty if no cause is found."""
    try:
        if path.is_dir():
            return ": it is a folder"
        found = absence(path)
    except OSError as error:
        return f": {error.strerror or error}"
    if not found.link and found.folder == path.absolute().parent:
        return found.hint
    return f": {found.why()}"


def shown_name(name: str) -> str:
    """Return a name for a message: shortened, with invisible characters escaped."""
    text = name if name.isprintable() and name == name.strip() else ascii(name)[1:-1]
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _cause(folder: Path, name: str, names: Sequence[str]) -> str:
    """Return how an existing name differs from `name`; empty if none of the usual causes applies."""
    looks = (_backslashes, _unicode_form, _white_space, _percent_code, _letter_case, _suffix)
    return next((said for look in looks if (said := look(folder, name, names))), "")


@lru_cache(8)
def _names(folder: Path, _stamp: int) -> Sequence[str]:
    return sorted(entry.name for entry in islice(folder.iterdir(), _MAX_NAMES))


def _backslashes(folder: Path, name: str, names: Sequence[str]) -> str:
    if "\\" not in name:
        return ""
    other = name.replace("\\", "/")
    found = "which is there" if _there(folder, other) else "if this is what is meant"
    return f"a backslash does not part folders here: write `{shown_name(other)}`, {found}"


def _unicode_form(folder: Path, name: str, names: Sequence[str]) -> str:
    """Check for a name with composed instead of decomposed letters, or the reverse: both look the same."""
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, name)
        if other != name and _there(folder, other):
            return f"it holds this name in another Unicode form ({form}): {other!a}, not {name!a}"
    return _same(name, names, lambda text: unicodedata.normalize("NFC", text), "in another Unicode form")


def _white_space(folder: Path, name: str, names: Sequence[str]) -> str:
    return _same(name, names, str.strip, "with other white space around it")


def _percent_code(folder: Path, name: str, names: Sequence[str]) -> str:
    other = unquote(name)
    if other == name or not _there(folder, other):
        return ""
    return f"the name is percent-encoded: write `{shown_name(other)}`"


def _letter_case(folder: Path, name: str, names: Sequence[str]) -> str:
    def form(text: str) -> str:
        return unicodedata.normalize("NFC", text.strip().casefold())

    return _same(name, names, form, "in other letter case")


def _suffix(folder: Path, name: str, names: Sequence[str]) -> str:
    found = next((other for other in names if other.rpartition(".")[0] == name), None)
    return f"a suffix is missing: did you mean `{shown_name(found)}`?" if found else ""


def _same(name: str, names: Sequence[str], form: Callable[[str], str], how: str) -> str:
    """Return a message about a name that equals `name` after `form` is applied to both; empty without one."""
    wanted = form(name)
    found = next((other for other in names if form(other) == wanted), None)
    if found is None:
        return ""
    shown = shown_name(found) if shown_name(found) != shown_name(name) else ascii(found)[1:-1]
    return f"it holds this name {how}: `{shown}`"


def _there(folder: Path, name: str) -> bool:
    try:
        return (folder / name).exists()
    except (OSError, ValueError):  # the name is too long or has a zero byte
        return False


def absolute(address: str) -> str:
    """Return the absolute path with links resolved; return an address with `://` unchanged."""
    address = local_name(address)
    return address if "://" in address else str(Path(address).expanduser().resolve())
