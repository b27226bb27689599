"""Damaged media without end: whatever they are, they are read or refused, in time, and nothing is left behind.

    python tests/fuzz/media.py --seconds 300 --seed 0

Files are decoded as the server does, in a process of its own. A file that ends that process, holds it up, or is refused
in other words than `UserError`'s is kept in `--keep` and named; so is memory, and descriptors, that only ever grow.
Exits with 1 then. The same seed sends the same files.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import mutations
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import Limits
from perceptune.serving.media_worker_pool import MediaWorkerPool

SLOW = 10.0  # seconds that no file of a few kilobytes may take
GROWN = 1.25  # times as much memory, from a quarter of the way to the end: libraries keep tables
BROKEN = ("cannot be decoded", "too long to decode")  # in the server's words: the process ended, or hung


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modality", choices=sorted(mutations.seeds()))
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    with (options.keep / "stderr").open("wb") as file:  # libraries complain of every damaged file
        os.dup2(file.fileno(), sys.stderr.fileno())
    return asyncio.run(fuzz(options))


async def fuzz(options: argparse.Namespace) -> int:
    decoders = MediaWorkerPool(Limits(), 1, 8)
    found: list[str] = []
    came: Counter[str] = Counter()
    held: list[tuple[float, int, int]] = []  # memory and descriptors of the process, descriptors of ours
    try:
        start = time.monotonic()
        for number in range(10**9):
            if time.monotonic() - start > options.seconds:
                break
            chance = random.Random(f"{options.seed}-{number}")
            modality = options.modality or chance.choice(sorted(mutations.seeds()))
            name, data = mutations.drawn(modality, chance)
            began, said = time.monotonic(), "read"
            try:
                await decoders.check(data, modality)
            except ApiError as error:
                said = "refused"
                if any(words in error.message for words in BROKEN):
                    said = error.message
            if time.monotonic() - began > SLOW:
                said = f"took {time.monotonic() - began:.1f} s"
            came[f"{modality} {said}"] += 1
            if said not in ("read", "refused"):
                path = options.keep / f"{options.seed}-{number}-{modality}-{name.replace('/', '-')}"
                path.write_bytes(data)
                found.append(f"{path}: {said}")
                print(found[-1], flush=True)
            if number % 100 == 0:
                held.append(_held(decoders))
    finally:
        decoders.close()
    grown = _grown(held)
    print(f"{sum(came.values())} files, seed {options.seed}: {dict(sorted(came.items()))}")
    print(f"memory {[round(one[0]) for one in held[:: max(1, len(held) // 8)]]} MB")
    print("\n".join([*found, *grown]) or "nothing found")
    return int(bool(found or grown))


def _held(decoders: MediaWorkerPool) -> tuple[float, int, int]:
    running = decoders._all[0]._running
    if running is None:
        return 0.0, 0, _open("self")
    pages = int(Path(f"/proc/{running.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6, _open(running.pid), _open("self")


def _open(process: int | str) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def _grown(held: list[tuple[float, int, int]]) -> list[str]:
    if len(held) < 8:
        return []
    early, last = held[len(held) // 4], held[-1]
    grown = [f"memory grew from {early[0]:.0f} to {last[0]:.0f} MB"] if last[0] > GROWN * early[0] else []
    for place, whose in ((1, "the process's"), (2, "our")):
        if last[place] > early[place] + 2:
            grown.append(f"{whose} descriptors grew from {early[place]} to {last[place]}")
    return grown


if __name__ == "__main__":
    sys.exit(main())
