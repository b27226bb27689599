"""Locks on what one process writes at a time. The system releases them when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from perceptune.errors import UserError, disk_error

# What file systems answer that have no locks: some network disks, some mounts of other systems' folders.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def locked(path: Path, *, busy: str) -> Iterator[None]:
    """Hold the lock file `path`, which stays when it is released.

    Raises `UserError` with `busy` at once if another process, or another thread, holds it, and for a folder that cannot
    be written. A disk without locks is noted on stderr, and nothing is held.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(busy) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise disk_error(path.parent, error) from error
        print(f"note: {path.parent} is on a disk without locks: let one process at a time write there", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()
