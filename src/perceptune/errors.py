"""The one exception a user is meant to see: a mistake in a recipe, a file or a command."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Of a folder without permission, on a disk that is mounted to be read, below something that is a file, and where the
# system makes no folders, such as below the mount point of homes that are not there.
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


class UserError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with 2.

    The message names the file, key or sample, and the nearest valid choice where there is one.
    """


class NotWritableError(UserError):
    """A folder that cannot be written to: of a cache one may do without it. `reason` is what the system says."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class NonMainProcessError(UserError):
    """An error that another process of the same job tells the user: this one ends without a word."""


@contextmanager
def error_prefix(what: str) -> Iterator[None]:
    """Says at the front of a `UserError` raised inside what it is about: a file, a key."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean ...?` for a mistyped name, or the list of choices, or nothing when there are none."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; choose from {', '.join(f'`{choice}`' for choice in known)}" if known else ""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an `OSError` of what is written inside as a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> UserError:
    """What a failed write means to the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; nothing already saved was touched. Free space, then resume")
    reason = error.strerror or str(error)
    if error.errno in NOT_WRITABLE:
        return NotWritableError(f"{path}: cannot be written: {reason}", reason)
    return UserError(f"{path}: cannot be written: {reason}")
