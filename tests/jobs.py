"""What the tests run in two processes, under `accelerate launch` as `python tests/jobs.py JOB FOLDER`.

A job writes what each process found to FOLDER/JOB.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save

import perceptune
import support
from perceptune.encoders.cache import feature_cache
from perceptune.errors import UserError
from perceptune.training import batch_loader, reward, trainer
from perceptune.utils import distributed
from support import train_section

EVALUATED = {"every": 3, "during_samples": 7, "batch_size": 2}


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """Trainings whose course must not depend on the number of processes."""
    mixed = folder / "data/mixed.jsonl"

    def one(lm: str = "lm", data: Path = folder / "data/train.jsonl", **changes: Any) -> dict[str, Any]:
        changes["train"]["eps"] = 1e-5  # Adam divides by the gradient: a tiny one must not magnify rounding
        return support.recipe(folder / lm, folder / "encoder", data, **changes)

    return {
        "odd": one(train=train_section(steps=8, batch_size=5, clip=1.0, ema=0.8), eval=EVALUATED),
        # The second process has no row in most forward passes.
        "single rows": one(train=train_section(batch_size=1, accumulate=3)),
        "tokens": one(train=train_section(steps=None, epochs=2, batch_tokens=100, accumulate=2)),
        # Connections alone: rows without a picture have nothing to learn.
        "mixed": one(data=mixed, method={"name": "epalm-lin", "n_levels": 2}, train=train_section(batch_size=3)),
        # Tied embeddings, projected prompt, a picture that cannot be read.
        "opt": one("opt", folder / "broken/train.jsonl", train=train_section(batch_size=3, max_bad_media=1)),
    }


def prepare(folder: Path) -> None:
    """The data of the recipes; 11 samples, so epochs do not end with a batch."""
    support.save_data(folder / "data", rows=11)
    support.save_data(folder / "broken", rows=11)
    (folder / "broken/train4.png").write_bytes(b"not a picture")
    support.save_data(folder / "many", rows=40)
    (folder / "many/train30.png").write_bytes(b"not a picture")
    rows = [json.loads(line) for line in (folder / "data/train.jsonl").read_text().splitlines()]
    mixed = [{**row, "image": None} if i % 4 else row for i, row in enumerate(rows)]
    (folder / "data/mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))


def train_all(folder: Path, world: distributed.World) -> dict[str, Any]:
    """Trains every recipe, and evaluates one; what each process ends up with."""
    made: list[trainer.Trainer] = []
    original = trainer.Trainer.fit

    def fit(self: trainer.Trainer, **given: Any) -> trainer.TrainResult:
        made.append(self)
        return original(self, **given)

    trainer.Trainer.fit = fit  # type: ignore[method-assign]
    for name, recipe in recipes(folder).items():
        perceptune.train(recipe, folder / "runs" / name)
    methods = [hashlib.sha256(save(dict(trainer.model.method.state_dict()))).hexdigest() for trainer in made]
    sharded = [
        sum(type(p).__name__ == "DTensor" for layer in t.model.lm.layers for p in layer.parameters()) for t in made
    ]
    rows = [[[row[0].id for row in picked] for step in range(4) for picked in t.loader._picked(step)] for t in made[:1]]
    results = perceptune.evaluate(folder / "runs/odd", control=True, no_media=True)
    captions = {"name": "leaves.captions", "train": str(folder / "data/train.jsonl")}
    captioned = perceptune.evaluate(folder / "runs/odd", task=captions, control=True, into=folder / "captioned")
    return {"methods": methods, "sharded": sharded, "rows": rows[0], "results": results, "captioned": captioned}


def caching(folder: Path, **cache: Any) -> dict[str, Any]:
    """A training on forty pictures, one of them unreadable, each as two views."""
    encoders = {"image": {"id": str(folder / "encoder"), "views": 2}}
    section = train_section(steps=16, batch_size=5, max_bad_media=1, eps=1e-5)
    given = support.recipe(folder / "lm", folder / "encoder", folder / "many/train.jsonl", train=section)
    return {**given, "encoders": encoders, "cache": {"dir": str(folder / "cache"), **cache}}


def cache(folder: Path, world: distributed.World) -> dict[str, Any]:
    """Pictures that each process encoded, before the first step and afterwards, on disk and in memory."""
    encoded, prepared = [0], list[int]()
    encode, prepare = feature_cache.FeatureStore._encode, batch_loader.BatchLoader.precompute

    def counted(self: feature_cache.FeatureStore, loaded: Any) -> Any:
        encoded[0] += len(loaded)
        return encode(self, loaded)

    def noted(self: batch_loader.BatchLoader, standardized: int) -> None:
        prepare(self, standardized)
        prepared.append(encoded[0])

    feature_cache.FeatureStore._encode, batch_loader.BatchLoader.precompute = counted, noted  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    for mode in ("disk", "memory"):
        encoded[0] = 0
        perceptune.train(caching(folder, features=mode), folder / mode)
        found[mode] = [prepared.pop(), encoded[0]]
    strict = caching(folder, dir=str(folder / "empty"))
    strict["train"]["max_bad_media"] = 0
    try:
        perceptune.train(strict, folder / "strict")
    except UserError as error:
        found["said"] = [type(error).__name__, str(error)]
    return found


def fail(folder: Path, world: distributed.World) -> dict[str, Any]:
    """The second process alone cannot build its model; then it alone fails in a step; then both do."""
    said = []
    places: list[tuple[Any, str]] = [(trainer, "build"), (reward, "add_gradients")]
    for where, name in places:
        original = getattr(where, name)

        def broken(*_: Any, **__: Any) -> Any:
            raise UserError("no room on the second machine")

        if world.rank == 1:
            setattr(where, name, broken)
        try:
            perceptune.train(recipes(folder)["odd"], folder / f"fails in {name}")
        except UserError as error:
            said.append([type(error).__name__, str(error)])
        setattr(where, name, original)
    reward.add_gradients = lambda *_: ([float("nan")], 1, 1)  # type: ignore[assignment]
    try:
        perceptune.train(recipes(folder)["odd"], folder / "not a number")
    except UserError as error:
        said.append([type(error).__name__, str(error)])
    return {"said": said}


JOBS: dict[str, Callable[[Path, distributed.World], dict[str, Any]]] = {
    "train_all": train_all,
    "cache": cache,
    "fail": fail,
}


def main(job: str, place: Path) -> None:
    """One of the processes of a job."""
    shared = distributed.World()
    found = shared.all_gather(JOBS[job](place, shared))
    if shared.is_main:
        (place / f"{job}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
    distributed.hard_exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
