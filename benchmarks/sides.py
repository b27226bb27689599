"""The two sides of a comparison: a commit's source, and a process that runs it."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT


class SideError(Exception):
    """A side that cannot be started, or that ended before it answered."""


def source_of(commit: str, folder: Path) -> Path:
    """The `src` folder of a commit, unpacked into a folder; of a checkout, given by its path, its own."""
    if Path(commit, "src").is_dir():
        return Path(commit, "src").resolve()
    command = ["git", "-C", str(ROOT), "archive", commit, "src"]
    try:
        archive = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise SideError(f"`{commit}`: git is not installed, which reads commits") from None
    if archive.returncode:
        raise SideError(f"`{commit}` is neither a commit nor a checkout: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder / "src"


class Side:
    """A worker process (`worker.py`) with one commit's source."""

    def __init__(self, name: str, source: Path, models: Path, own: Path, threads: int = 1) -> None:
        own.mkdir(parents=True, exist_ok=True)
        self.name, self._log = name, own / "log.txt"
        environment = {
            **os.environ, "PYTHONPATH": str(source), "PERCEPTUNE_CACHE": str(own / "cache"), "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": "0",
        }  # fmt: skip
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", str(models), str(own)], cwd=ROOT, env=environment,
                text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def ask(self, row: str) -> dict[str, Any]:
        """The worker's answer to a row. Raises `SideError` with the end of its log."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(row, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SideError(f"{self.name}, `{row}`:\n{self._log.read_text()[-2000:]}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        with self._process:  # closes its input, at whose end it stops, and waits
            pass


def make_models(folder: Path) -> Path:
    """Those of `small_models`, which takes seconds to import."""
    from benchmarks.small_models import make

    return make(folder)


class Sides:
    """Commits by name, with the same models for all of them, made in a folder."""

    def __init__(self, commits: Mapping[str, str], folder: Path, threads: int = 1) -> None:
        self._commits, self._folder, self._threads = commits, folder, threads
        self._sources = {name: source_of(commit, folder / name) for name, commit in commits.items()}
        self._models = make_models(folder / "models")

    @contextmanager
    def started(self) -> Iterator[dict[str, Side]]:
        """A new worker for each commit."""
        with ExitStack() as stack:
            workers = {}
            for name, source in self._sources.items():
                own = self._folder / f"own-{name}"
                worker = Side(f"{name} ({self._commits[name]})", source, self._models, own, self._threads)
                stack.callback(worker.close)
                workers[name] = worker
            yield workers
