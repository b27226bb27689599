"""Keep the memory that a step frees for the next one, if the C library can be configured to."""

import contextlib
import ctypes
import os
import platform

# Parameter numbers of glibc's malloc.h, and their values. glibc rejects a larger threshold for `mmap`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = 2**30, 32 * 2**20  # bytes


def keep_freed_memory() -> bool:
    """Configure glibc to return less memory to the system; return whether that succeeded.

    Otherwise every step requests memory for its larger tensors from the system, which fills it with zeros first.
    Settings of the user's environment take precedence.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or platform.libc_ver()[0] != "glibc":
        return False
    with contextlib.suppress(OSError, AttributeError):  # another C library that reports itself as glibc
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(libc.mallopt(_TRIM_THRESHOLD, _KEPT))
    return False
