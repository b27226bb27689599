"""Damaged media chosen by what they make our readers and Pillow do: atheris, for who has it (`pip install atheris`).

    python tests/fuzz/guided.py image -max_total_time=120 -seed=1     # or audio, video

Whatever is raised beside `UserError` ends it, and so does a library that crashes: the file is kept as `crash-*`.
Arguments behind the modality are libFuzzer's.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["perceptune", "PIL"]):
    from perceptune.errors import UserError
    from perceptune.serving import media_worker
    from perceptune.serving.limits import Limits
    from perceptune.serving.media_worker_pool import MediaWorkerPool

import mutations

LIMITS = MediaWorkerPool.limits_of(Limits(), frames=8)


def reader(modality: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with suppress(UserError):
            media_worker.checked_medium(data, modality, LIMITS[modality])

    return read


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Now and then a file anew: what is left of one after a hundred changes is none."""
    chance = random.Random(seed)
    if not data or chance.random() < 0.05:
        data = chance.choice(mutations.seeds()[sys.argv[1]])[1]
    return mutations.mutated(data, chance)[:most]


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], "-max_len=40000", *sys.argv[2:]], reader(sys.argv[1]), custom_mutator=mutate)
    atheris.Fuzz()
