"""Where a part's numbers come from: the code that computes, the commit, versions and the machine."""

import ast
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import perceptune
from perceptune.errors import UserError
from perceptune.evaluation.results import versions
from perceptune.utils import timing
from perceptune.utils.atomic_io import write_text
from planning import ROOT, RUNS, Part

# Folders of the package on which no number depends.
BESIDE = ("serving/", "cli/", "tools/report/", "tools/datasets/")
ORIGINS = RUNS / "state" / "origins"  # for each folder that parts write to, what its runs were made by


def fingerprint(part: Part) -> str:
    """Of the part's commands, its recipes and the code that computes."""
    digest = hashlib.sha256(json.dumps(asdict(part)["commands"]).encode())
    for name in part.recipes:
        digest.update((ROOT / name).read_bytes())
    digest.update(code().encode())
    return digest.hexdigest()[:16]


@cache
def code() -> str:
    """Of what the package computes with: neither comments nor docstrings nor layout count."""
    package = Path(perceptune.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        if not place.startswith(BESIDE):
            digest.update(f"{place}\n{meaning(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def meaning(source: str) -> str:
    """A module's syntax tree without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)


def circumstances() -> dict[str, Any]:
    """Commit, versions and machine."""
    return {
        "commit": _commit(), "versions": {**versions(), "python": platform.python_version()}, "machine": machine(),
    }  # fmt: skip


@cache
def machine() -> str:
    """Cores, processor, the instructions that torch uses and the system: where they are the same, so are all bits."""
    found = timing.machine()
    system = f"{platform.system()} {platform.machine()}"
    return f"{os.cpu_count()} cores of {found['cpu']} ({found['capability']}), {system}"


def claim(part: Part, keep: bool) -> int:
    """Notes that this code works in the part's folders from now on; returns how many states of the code have done so.

    Runs that are finished are never made again, so those of other code, of another machine or of unknown ones are
    refused (`UserError`) unless they are to be kept.
    """
    now, most = f"{code()} {machine()}", 1
    for folder in _folders(part):
        path = ROOT / ORIGINS / folder.relative_to(RUNS).as_posix().replace("/", "--")
        is_new = not (ROOT / folder).exists()
        before = [] if is_new else path.read_text(encoding="utf-8").splitlines() if path.is_file() else ["unknown"]
        if before not in ([], [now]) and not keep:
            raise UserError(
                f"{folder} holds runs of {_named(before)}, not of code {now}: "
                "remove the folder to have them made anew, or say --keep to take them as they are"
            )
        after = list(dict.fromkeys([*before, now]))
        most = max(most, len(after))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(after) + "\n")
    return most


def has_runs(part: Part) -> bool:
    """Whether the folders that the part writes to are there: other parts read them."""
    return all((ROOT / folder).exists() for folder in _folders(part))


def _folders(part: Part) -> list[Path]:
    """Those that the part writes to, below `ROOT`."""
    return sorted(Path(folder.replace("{runs}", str(RUNS))) for folder in part.folders)


def _named(origins: Sequence[str]) -> str:
    return " and of ".join(f"{origin} origin" if origin == "unknown" else f"code {origin}" for origin in origins)


def _commit() -> str:
    """Of the checkout, `+` behind it if tracked files were changed; `unknown` outside of one."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    return "unknown" if not head else head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
