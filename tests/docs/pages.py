"""The pages of the site as zensical reads them: docs/, and the files outside it that the pages link to.

python tests/docs/pages.py      (part of `make docs`)

The files of docs/ lie at the top, other files under their path in the repository; links are rewritten to fit.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#\s])")


def navigation(entries: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """Yield the pages in the navigation, in its order."""
    for entry in PROJECT["nav"] if entries is None else entries:
        for below in entry.values():
            yield from [below] if isinstance(below, str) else navigation(below)


def place(file: Path) -> str:
    """Return where a file of the repository lies in the site."""
    return file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT).as_posix()


def original(page: str) -> Path:
    """Return the file of the repository that lies at `page` in the site."""
    return DOCS / page if (DOCS / page).exists() else ROOT / page


def collect() -> dict[str, Path]:
    """Return every file of the site, by its place. Raises `FileNotFoundError` for a link that leads nowhere."""
    found: dict[str, Path] = {}
    waiting = [*(file for file in sorted(DOCS.rglob("*")) if file.is_file()), *map(original, navigation())]
    while waiting:
        file = waiting.pop()
        if not file.is_file():
            raise FileNotFoundError(f"{file.relative_to(ROOT)}: linked or in the navigation, but not a file")
        if place(file) not in found:
            found[place(file)] = file
            waiting += links(file)
    return found


def links(file: Path) -> list[Path]:
    """Return the files that a page links to."""
    if file.suffix != ".md":
        return []
    return [_target(file, match) for match in _LINK.finditer(file.read_text(encoding="utf-8"))]


def rewritten(file: Path) -> str:
    """Return a page whose links fit the site."""

    def fitting(match: re.Match[str]) -> str:
        return os.path.relpath(place(_target(file, match)), Path(place(file)).parent).replace(os.sep, "/")

    return _LINK.sub(fitting, file.read_text(encoding="utf-8"))


def _target(file: Path, match: re.Match[str]) -> Path:
    return (file.parent / match[1]).resolve()


def write(folder: Path) -> None:
    """Write all files of the site into `folder`, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, file in collect().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            target.write_text(rewritten(file), encoding="utf-8")
        else:
            shutil.copyfile(file, target)


if __name__ == "__main__":
    write(ROOT / PROJECT["docs_dir"])
