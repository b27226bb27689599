"""The start of the process with the pretend GPU, without torch: the device must be there before torch looks for one."""

from __future__ import annotations

import ctypes


def start(library: str) -> None:
    """Loads the compiled `gpu/guard.cpp`, then lets torch believe in it."""
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    import fake_cuda

    fake_cuda.install()
