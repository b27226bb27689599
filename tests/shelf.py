"""A cache with a made-up asset, its made-up wheel and a made-up pip."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from perceptune.utils.assets import ASSETS, Asset, Wheel

FILES = {"data/answers.txt": "yes\nno\n", "data/train/a.json": "{}", "data/.DS_Store": "x", "code.py": "1/0"}
FINISHED = {"answers.txt", "asset.json", "train/a.json"}


def make_wheel(file: Path, members: Iterable[str] = FILES, source: str = "data/") -> Wheel:
    with zipfile.ZipFile(file, "w") as archive:
        for name in members:
            archive.writestr(name, FILES.get(name, "evil"))
    return Wheel("tiny-wheel==1.2", hashlib.sha256(file.read_bytes()).hexdigest(), source)


def make_asset(wheel: Wheel) -> Asset:
    return Asset(
        name="tiny",
        what="a made-up asset",
        wheels=(wheel,),
        licence="MIT",
        converter="folder",
        needs=None,
        download_mb=1,
        disk_mb=1,
    )


@dataclass
class Shelf:
    """A cache with one made-up asset, and a pip that copies its wheel."""

    wheel: Path
    cache: Path
    pip_calls: list[tuple[str, ...]] = field(default_factory=list)
    pip_error: str = ""

    def run_pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.pip_calls.append(arguments)
        if not self.pip_error:
            shutil.copy(self.wheel, arguments[arguments.index("--dest") + 1])
        return subprocess.CompletedProcess(arguments, int(bool(self.pip_error)), "", self.pip_error)

    def set(self, members: Iterable[str] = FILES, source: str = "data/", **changes: object) -> None:
        ASSETS["tiny"] = replace(make_asset(make_wheel(self.wheel, members, source)), **changes)  # type: ignore[arg-type]

    def files(self) -> set[str]:
        """Everything in the cache's asset folder, without the lock files."""
        found = (file for file in (self.cache / "assets").rglob("*") if file.is_file())
        names = {file.relative_to(self.cache / "assets").as_posix() for file in found}
        return {name for name in names if not name.endswith(".lock")}


def complete() -> set[str]:
    return {f"tiny-1.2-1/{name}" for name in FINISHED}
