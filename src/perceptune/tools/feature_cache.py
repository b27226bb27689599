"""Building and maintenance of the feature caches, for `perceptune features`."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.config.recipe import Recipe
from perceptune.data.build_task import make_task
from perceptune.data.media.source import MediaError, label
from perceptune.data.tasks.base import check_split
from perceptune.encoders.cache.feature_cache import cache_folder
from perceptune.errors import UserError
from perceptune.models.build import encoder_stores
from perceptune.types import Medium, Sample
from perceptune.utils.launch_environment import read_launch
from perceptune.utils.row_store.files import refused
from perceptune.utils.row_store.store import STORE_META, Store

DAY = 86_400
GB = 10**9


def build_features(recipe: Recipe, splits: Sequence[str] = ()) -> dict[str, Any]:
    """Compute the features of a recipe's task (default: all splits) and return a summary.

    Under `accelerate launch` or `torchrun` each process computes its part, by RANK and WORLD_SIZE. Broken media are
    listed, not cached.
    """
    if recipe.cache.features != "disk":
        raise UserError(f"`cache.features` is `{recipe.cache.features}`: only `disk` can be built beforehand")
    require_writable(cache_folder(recipe.cache.dir))  # unlike training, this needs a disk cache
    launch = read_launch(meeting=False)  # each process computes its part without communication
    rank, world = launch.rank, launch.size
    task = make_task(recipe)
    for split in splits:
        check_split(split, task.splits)
    start = time.monotonic()
    rows = {split: task.samples(split) for split in splits or task.splits}
    broken: dict[str, str] = {}
    computed, size, media = 0, 0, 0
    for modality, store in encoder_stores(recipe).items():

        def on_broken(medium: Medium, error: MediaError) -> None:
            broken[label(medium)] = str(error)

        for split, samples in rows.items():
            found = _media(samples, modality)
            media += len(found)
            share: dict[str, Any] = {"rank": rank, "world": world, "on_broken": on_broken}
            computed += store.precompute(found, label=f"{modality}, {split}", **share)
            for view in range(store.views if split == task.splits[0] else 0):
                name = f"{modality}, {split}, view {view + 1}"
                computed += store.precompute(found, [view] * len(found), label=name, **share)
        if (store.folder / STORE_META).is_file():
            size += Store.open(store.folder).bytes
    seconds = time.monotonic() - start
    return {
        "rank": rank, "world": world, "media": media, "computed": computed, "bytes": size, "seconds": seconds,
        "media_per_second": computed / seconds, "broken": broken,
    }  # fmt: skip


def require_writable(folder: Path) -> None:
    """Raise `UserError` for a folder in which no file can be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise refused(folder, error) from error


def caches(folder: Path | None = None) -> list[dict[str, Any]]:
    """Return the stores in a cache folder (default: the user's), the most recently used first."""
    found = []
    for path in _folders(folder):
        store = Store.open(path)
        found.append(
            {"folder": str(path), "kind": store.meta.get("kind", ""), "encoder": store.meta.get("encoder", "")[:12],
             "levels": store.meta.get("levels", []), "dtype": store.meta["dtype"], "rows": len(store),
             "bytes": store.bytes, "last_use": (path / STORE_META).stat().st_mtime}
        )  # fmt: skip
    return sorted(found, key=lambda one: -float(one["last_use"]))


def verify_features(folder: Path | None = None) -> dict[str, int]:
    """Read every byte of every store; count damaged rows and records by file."""
    return {str(file): n for path in _folders(folder) for file, n in Store.open(path).verify().items()}


def collect_garbage(
    folder: Path | None = None, *, older_than: float | None = None, max_gb: float | None = None
) -> dict[str, Any]:
    """Remove caches not used for `older_than` days, then the least recently used ones beyond `max_gb` gigabytes, then
    incomplete and damaged files. Returns the removed folders and the bytes freed."""
    removed, freed = [], 0
    known = caches(folder)
    total = sum(one["bytes"] for one in known)
    for one in reversed(known):  # least recently used first
        unused = older_than is not None and time.time() - one["last_use"] > older_than * DAY
        if unused or (max_gb is not None and total > max_gb * GB):
            try:
                shutil.rmtree(one["folder"])
            except OSError as error:
                raise refused(Path(one["folder"]), error) from error
            removed.append(one["folder"])
            total -= one["bytes"]
            freed += one["bytes"]
    freed += sum(Store.open(path).compact() for path in _folders(folder))
    return {"removed": removed, "freed": freed}


def _folders(folder: Path | None) -> list[Path]:
    root = cache_folder(folder)
    if folder is not None and not root.is_dir():
        raise UserError(f"no folder `{folder}`")
    return sorted(path.parent for path in root.glob(f"*/{STORE_META}"))


def _media(samples: Sequence[Sample], modality: str) -> list[Medium]:
    return list(dict.fromkeys(medium for sample in samples for medium in sample.list_media(modality)))
