"""Plants one-line faults, one at a time, in a copy of the sources, and sees whether the tests notice.

    python tests/mutants.py [--only NAME ...] [--jobs N]

`mutants.toml` holds the faults, each with the few cheap tests that must fail with it. What is heavy is imported once:
each fault has a fork of this process to itself. Ends with 1 unless every fault is caught, and unless the same tests
pass without any.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src/perceptune"
CPU_SECONDS, SECONDS = 300, 3600  # of work, and of waiting, after which a fault counts as one that hangs
PASSED, FAILED, NOT_RUN = 0, 1, 70  # pytest's exit codes, and ours
HUNG = (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL)
HEAVY = (
    "torch", "transformers.generation", "transformers.models.auto.modeling_auto", "accelerate", "peft", "pydantic",
    "numpy", "PIL.Image", "av", "fastapi", "uvicorn",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "opt", "gpt2", "dinov2", "vit")),
)  # fmt: skip
WITHOUT = "(no fault)"


@dataclass(frozen=True)
class Mutant:
    """A line of a source file, what stands in its place, and the tests that fail then."""

    name: str
    file: str  # below src/perceptune
    old: str  # the whole line, without its indentation
    new: str
    tests: tuple[str, ...]


def mutants() -> list[Mutant]:
    """All of them, in the order of the file."""
    rows = tomllib.loads((ROOT / "tests/mutants.toml").read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def mutated(text: str, mutant: Mutant) -> str:
    """A source file with the fault in it. Raises `ValueError` unless the line stands there exactly once."""
    lines = text.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip() == mutant.old]
    if len(places) != 1:
        raise ValueError(f"{mutant.name}: the line stands {len(places)} times in {mutant.file}: {mutant.old}")
    line = lines[places[0]]
    lines[places[0]] = line[: len(line) - len(line.lstrip())] + mutant.new + "\n"
    return "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these faults, or all of an area")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    asked = parser.parse_args()
    chosen = [one for one in mutants() if not asked.only or one.name.startswith(tuple(asked.only))]
    if not chosen:
        parser.error(f"no fault has one of the names {', '.join(asked.only)}")
    # As `conftest.py` has it: both are read when the libraries are imported.
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    for name in HEAVY:
        importlib.import_module(name)
    every = tuple(dict.fromkeys(test for one in chosen for test in one.tests))
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        kept = Path(place) / "kept"
        shutil.copytree(ROOT / "src", kept / "src")
        (kept / "recipes").symlink_to(ROOT / "recipes")
        todo = [*chosen, Mutant(WITHOUT, "", "", "", every)]
        for mutant, code, log in _run(todo, kept, max(1, asked.jobs)):
            wanted = PASSED if mutant.name == WITHOUT else FAILED
            words = {PASSED: "SURVIVED", FAILED: "caught", **dict.fromkeys(HUNG, "HANGS")}
            said = words.get(code, f"CANNOT BE TRIED (pytest ended with {code})")
            if mutant.name == WITHOUT:
                said = "passed" if code == PASSED else "FAILED"
            print(f"{said:10} {mutant.name}", flush=True)
            if code != wanted:
                bad += 1
                if code != PASSED:
                    print(log, flush=True)
    print(f"{len(chosen)} faults, {bad} problems")
    return min(bad, 1)


def _run(todo: Sequence[Mutant], kept: Path, jobs: int) -> Iterator[tuple[Mutant, int, str]]:
    """Each with pytest's exit code and the end of what it said, as they come."""
    waiting, running = list(todo), dict[int, tuple[ForkProcess, Mutant, Path]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            folder = kept.parent / f"{len(waiting)}"
            process = multiprocessing.get_context("fork").Process(target=_try, args=(mutant, kept, folder))
            process.start()
            running[process.sentinel] = process, mutant, folder
        for ended in connection.wait(list(running)):
            process, mutant, folder = running.pop(ended)  # type: ignore[call-overload]
            process.join()
            log = folder / "log"
            text = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            shutil.rmtree(folder, ignore_errors=True)
            yield mutant, process.exitcode or 0, text


def _try(mutant: Mutant, kept: Path, folder: Path) -> None:
    """In a process of its own: the tests on a copy of the sources, of which one file is another."""
    code = NOT_RUN
    try:
        folder.mkdir()
        log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = _tested(mutant, kept, folder)
    except BaseException:  # noqa: BLE001 - of whatever kind, it is no failed test
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads that a fault has left waiting do not count


def _tested(mutant: Mutant, kept: Path, folder: Path) -> int:
    """pytest's exit code."""
    import pytest

    shutil.copytree(kept, folder, copy_function=os.link, symlinks=True, dirs_exist_ok=True)
    if mutant.file:
        path = folder / "src/perceptune" / mutant.file
        text = mutated(path.read_text(encoding="utf-8"), mutant)
        path.unlink()  # it is the other copies' file, too
        path.write_text(text, encoding="utf-8")
    sources = str(folder / "src")
    sys.path.insert(0, sources)
    os.environ["PYTHONPATH"] = sources  # for tests that start processes
    os.chdir(ROOT)
    if mutant.file:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tmp")]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # a plugin of a library that is imported by now
    return int(pytest.main([*options, *mutant.tests]))


if __name__ == "__main__":
    sys.exit(main())
