"""Local files that a request may name: those in one folder, not through links that lead out of it."""

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from perceptune.errors import UserError
from perceptune.serving.errors import ApiError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class LocalFiles:
    """Reads `file://` URLs in `folder`. Raises `UserError` if that is not a folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--allowed-local-media-path: `{folder}` is no folder")
        self.folder = folder.resolve()

    def read(self, url: str, most: int) -> bytes:
        """Read at most `most` bytes. Files outside the folder and missing ones give the same error."""
        path = self._path(url)
        try:
            descriptor = self._opened(path.resolve(strict=True).relative_to(self.folder))
        except (OSError, ValueError, RuntimeError):
            raise _refused() from None
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise _refused()
        with os.fdopen(descriptor, "rb") as file:
            if about.st_size > most:
                raise ApiError(413, f"the file is larger than {most:,} bytes", code="media_too_large")
            return file.read(most)

    def _path(self, url: str) -> Path:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise _refused() from None
        path = unquote(parts.path)
        drive = re.match(r"/?[A-Za-z]:", path)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or "\\" in path or "\0" in path:
            raise _refused()
        if drive and os.name != "nt":
            raise _refused()
        return Path(path.removeprefix("/") if drive else path)

    def _opened(self, inside: Path) -> int:
        """Open the path component by component, following no link, so that one created meanwhile is not followed."""
        if os.open not in os.supports_dir_fd:
            return os.open(self.folder / inside, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        here = os.open(self.folder, os.O_RDONLY)
        try:
            for step in inside.parts[:-1]:
                below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW, dir_fd=here)
                os.close(here)
                here = below
            # Non-blocking: opening a named pipe would block forever.
            return os.open(inside.name, os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW, dir_fd=here)
        finally:
            os.close(here)


def _refused() -> ApiError:
    return ApiError(400, "no such file among those that may be read", code="local_media")
