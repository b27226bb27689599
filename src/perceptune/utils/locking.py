"""File locks for one writer at a time. The system releases them when a process exits, even if it is killed."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from perceptune.errors import UserError, disk_error

# Errors of file systems without locks: some network disks, some mounts of other systems' folders.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def waiting_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock file `path`, which is not removed; yield whether it is held, since some disks have no locks.

    Calls `on_wait` before waiting for another process or thread that holds it.
    """
    lock, is_held = FileLock(path), True
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise
        is_held = False
    try:
        yield is_held
    finally:
        lock.release()


@contextlib.contextmanager
def locked(path: Path, *, busy: str) -> Iterator[None]:
    """Hold the lock file `path` as `waiting_lock` does, but never wait.

    Raises `UserError` with `busy` at once if another process or thread holds it, and for a folder that cannot be
    written. On a disk without locks print a note on stderr and hold nothing.
    """

    def refuse() -> None:
        raise UserError(busy)

    with contextlib.ExitStack() as stack:
        try:
            is_held = stack.enter_context(waiting_lock(path, refuse))
        except OSError as error:
            raise disk_error(path.parent, error) from error
        if not is_held:
            where = f"{path.parent} is on a disk without locks"
            print(f"note: {where}: let one process at a time write there", file=sys.stderr)
        yield
