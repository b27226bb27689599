"""Two commits in turns: what a training step and an answer cost before and after.

    python -m benchmarks.against OLD NEW [--rounds 15] [--rows train] [--json FILE]

OLD and NEW are commits, or checkouts (`.` with what is not committed yet). Each has a process of its own, a new one
every five rounds, with the same interpreter and the same small models with random weights. In every round each row is
run by both, by turns first, five times; the ratio of their least processor times, new over old, is taken per round.
Exits with 1 if a row is slower: its median ratio is above 1.05, and the interval of that median (bootstrap, 95 %) lies
above 1.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.sides import SideError, Sides
from benchmarks.workloads import ROWS

OLD, NEW = "old", "new"
SLOWER = 1.05  # median ratio that is tolerated
DRAWS = 5000
FRESH = 5  # rounds after which new processes are started


class Asked(Protocol):
    """What runs the rows of one side."""

    def ask(self, row: str) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Verdict:
    """A row's measurements in seconds, round by round, and the ratio of the processor times."""

    row: str
    cpu: dict[str, list[float]]
    wall: dict[str, list[float]]
    ratio: float  # median over the rounds of new / old
    low: float
    high: float
    same_results: bool  # losses or answers

    @property
    def is_slower(self) -> bool:
        return self.low > 1 and self.ratio > SLOWER


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The median, and the ends of its 95 % interval by the percentile bootstrap."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values), (DRAWS, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)


def compare(
    start: Callable[[], AbstractContextManager[Mapping[str, Asked]]], rows: Sequence[str], rounds: int, seed: int = 0
) -> list[Verdict]:
    """Runs every row on both sides in every round. New processes are started now and then: each has a speed of its own.

    They are warmed up by a turn of each row that is not measured.
    """
    chance = random.Random(seed)
    told: dict[str, dict[str, list[Mapping[str, Any]]]] = {row: {OLD: [], NEW: []} for row in rows}
    for first in range(0, rounds, FRESH):
        with start() as workers:
            for row in rows:
                for worker in workers.values():
                    worker.ask(row)
            for number in range(first, min(first + FRESH, rounds)):
                for row in chance.sample(rows, len(rows)):
                    for name in (OLD, NEW) if (number + rows.index(row)) % 2 else (NEW, OLD):
                        told[row][name].append(workers[name].ask(row))
                print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return [_verdict(row, told[row]) for row in rows]


def _verdict(row: str, told: Mapping[str, Sequence[Mapping[str, Any]]]) -> Verdict:
    cpu = {name: [float(answer["cpu"]) for answer in answers] for name, answers in told.items()}
    wall = {name: [float(answer["wall"]) for answer in answers] for name, answers in told.items()}
    ratios = [new / old for old, new in zip(cpu[OLD], cpu[NEW], strict=True)]
    same = all(old["result"] == new["result"] for old, new in zip(told[OLD], told[NEW], strict=True))
    return Verdict(row, cpu, wall, *median_interval(ratios), same)


def table(verdicts: Sequence[Verdict]) -> str:
    """A line for each row: medians in milliseconds, the ratio with its interval, whether the results are the same."""
    lines = [
        f"{'row':20} {'old cpu ms':>10} {'new cpu ms':>10} {'old wall':>9} {'new wall':>9} {'new/old':>8}  "
        f"{'95 % interval':15} results"
    ]
    for verdict in verdicts:
        times = [1000 * float(np.median(kind[name])) for kind in (verdict.cpu, verdict.wall) for name in (OLD, NEW)]
        lines.append(
            f"{verdict.row:20} {times[0]:10.1f} {times[1]:10.1f} {times[2]:9.1f} {times[3]:9.1f} {verdict.ratio:8.3f}  "
            f"{f'{verdict.low:.3f} to {verdict.high:.3f}':15} {'same' if verdict.same_results else 'differ'}"
            f"{'  SLOWER' if verdict.is_slower else ''}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit, or the folder of a checkout")
    parser.add_argument("new", help="a commit, or the folder of a checkout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", default="", help="only rows whose names begin so: `train`, `answer`, `train epalm`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows")
    parser.add_argument("--json", type=Path, help="file for all measurements")
    given = parser.parse_args(arguments)
    rows = [row for row in ROWS if row.startswith(given.rows)]
    if not rows or given.rounds < 1:
        parser.error(f"no rounds, or no row begins with `{given.rows}`: {', '.join(ROWS)}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            pair = Sides({OLD: given.old, NEW: given.new}, Path(folder), given.threads)
            verdicts = compare(pair.started, rows, given.rounds, given.seed)
    except SideError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(verdicts))
    if given.json:
        written = {"old": given.old, "new": given.new, "rows": [asdict(verdict) for verdict in verdicts]}
        given.json.write_text(json.dumps(written, indent=1), encoding="utf-8")
    return int(any(verdict.is_slower for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
