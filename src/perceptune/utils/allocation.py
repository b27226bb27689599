"""Memory that a step frees is kept for the next one, where the C library lets itself be told so."""

import contextlib
import ctypes
import os
import platform

# glibc's malloc.h: the numbers of the parameters, and their values. It takes no larger threshold for `mmap`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = 2**30, 32 * 2**20  # bytes


def keep_freed_memory() -> bool:
    """Tells glibc to give back less memory to the system; returns whether it was told.

    Without it, every step asks the system for its larger tensors anew, and the system fills them with zeros first.
    What the user has set in the environment stays.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or platform.libc_ver()[0] != "glibc":
        return False
    with contextlib.suppress(OSError, AttributeError):  # another C library under its name
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(libc.mallopt(_TRIM_THRESHOLD, _KEPT))
    return False
