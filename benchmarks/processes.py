"""Memory of a process, and measurements in a fresh one."""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def answer_of(command: Sequence[str]) -> Any:
    """Runs a module of `benchmarks` in a process of its own and reads the JSON that it prints."""
    words = [sys.executable, "-m", *command]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def rows_of_a_fresh_process(shapes: str, flags: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `python -m benchmarks` with further flags and as many threads as here."""
    import torch

    threads = str(torch.get_num_threads())
    rows: list[dict[str, Any]] = answer_of(["benchmarks", "--shapes", shapes, "--json", "--threads", threads, *flags])[
        "rows"
    ]
    return rows
