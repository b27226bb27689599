"""`UserError`, the one exception shown to users: a mistake in a recipe, a file or a command."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Errors for a folder without permission, on a disk that is mounted read-only or below a file, and for one that the
# system refuses to create, such as a folder below an automounter's mount point for home folders.
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


class UserError(Exception):
    """An error that the user can fix. The command line prints it without a traceback and exits with 2.

    The message names the file, key or sample, and the nearest valid choice where there is one.
    """


class NotWritableError(UserError):
    """A folder that cannot be written to; a cache can then be kept in memory. `reason` is the system's message."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class NonMainProcessError(UserError):
    """Raised on non-main processes for an error that the main process reports; exit silently."""


@contextmanager
def error_prefix(what: str) -> Iterator[None]:
    """Prefix the message of a `UserError` raised inside with `what`: the file or key that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean ...?` for a mistyped name, else the list of choices; empty if there are none."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; choose from {', '.join(f'`{choice}`' for choice in known)}" if known else ""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise an `OSError` of a write inside as a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> UserError:
    """Return the `UserError` for a failed write to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; nothing already saved was touched. Free space, then resume")
    reason = error.strerror or str(error)
    if error.errno in NOT_WRITABLE:
        return NotWritableError(f"{path}: cannot be written: {reason}", reason)
    return UserError(f"{path}: cannot be written: {reason}")
