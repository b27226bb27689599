"""The feature cache: the same bits whether kept or not, killed or not; nothing old is ever taken for new."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from forks import Fork
from perceptune.config.schema import CacheConfig
from perceptune.data.media.source import MediaError, content
from perceptune.encoders.base import Encoder, load_encoder
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.utils.row_store.store import Store
from runs import Counting, features_folder, rows_of

LEVELS = [2, 3]


@pytest.fixture
def encoder(dwarfs: Path) -> Encoder:
    return load_encoder(dwarfs / "encoder")


def store(encoder: Encoder, folder: Path, **changes: Any) -> FeatureStore:
    views = {key: changes.pop(key) for key in ("views", "megabytes") if key in changes}
    return FeatureStore(encoder, LEVELS, "cls", CacheConfig(**{"dir": folder, **changes}), **views)


def test_kept_or_not_the_features_are_the_encoders_own(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        alone = torch.cat([encoder(encoder.load(path)[None], LEVELS) for path in pictures])
    modes = [store(encoder, tmp_path / "c", features=mode) for mode in ("off", "memory", "disk")]
    off, memory, disk = (one.get(pictures) for one in modes)
    assert off.shape == (40, 2, 1, 24)
    torch.testing.assert_close(off, alone, rtol=0, atol=1e-6)
    assert torch.equal(off, memory)
    assert torch.equal(off, disk)
    counting = Counting(monkeypatch, encoder)
    again = store(encoder, tmp_path / "c")  # as a later process finds it
    assert torch.equal(again.get([*pictures[::-1], pictures[0]]), torch.cat([disk.flip(0), disk[:1]]))
    assert (counting.encoded, counting.read) == (0, 0), "one stat a file, nothing more"
    assert torch.equal(again.get([path.read_bytes() for path in pictures]), disk), "the content counts, not the name"
    assert counting.encoded == 0
    assert modes[0].get(pictures[:2]).shape[0] == counting.encoded == 2


def test_a_full_memory_computes_the_rest_at_each_use(encoder: Encoder, pictures: list[Path], tmp_path: Path) -> None:
    few = FeatureStore(encoder, LEVELS, "all", CacheConfig(features="memory"), megabytes=1)
    few.precompute(pictures)
    assert not few._full
    few._kept.budget = 1000  # type: ignore[union-attr]
    more = [path.read_bytes() + b"!" for path in pictures]
    assert few.precompute(more) == 16, "it stops where nothing fits any more"
    torch.testing.assert_close(few.get(more), few.get(pictures), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_smaller_dtype_halves_the_cache(encoder: Encoder, pictures: list[Path], tmp_path: Path, dtype: str) -> None:
    full, half = store(encoder, tmp_path / "c"), store(encoder, tmp_path / "c", dtype=dtype)
    first = half.get(pictures)
    assert torch.equal(first, full.get(pictures).to(getattr(torch, dtype)).float())
    assert torch.equal(first, half.get(pictures)), "the first use sees what later ones see"
    assert [Store.open(one.folder)._unit for one in (full, half)] == [192, 96]


def test_methods_that_read_other_levels_share_what_is_kept(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = store(encoder, tmp_path / "own").get(pictures)
    shared = CacheConfig(dir=tmp_path / "c", levels=2)
    assert torch.equal(FeatureStore(encoder, LEVELS, "cls", shared).get(pictures), own)
    counting = Counting(monkeypatch, encoder)
    last = FeatureStore(encoder, [3], "cls", shared)
    assert torch.equal(last.get(pictures), own[:, 1:])
    found = FeatureStore(encoder, [3, 2], "cls", shared).get_cached(pictures)
    assert found is not None
    assert torch.equal(found, own.flip(1))
    assert counting.encoded == 0
    assert FeatureStore(encoder, [0, 3], "cls", shared).kept_levels == [0, 2, 3], "an earlier one is kept beside them"
    assert FeatureStore(encoder, [3], "all", shared).kept_levels == [3], "all tokens of other levels would be large"


def test_nothing_old_is_taken_for_new(encoder: Encoder, dwarfs: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder, path = tmp_path / "c", pictures[0]
    before = store(encoder, folder).get([path])
    stat = path.stat()
    Image.frombytes("RGB", (24, 18), bytes(24 * 18 * 3)).save(path, compress_level=0)
    changed = path.read_bytes()
    path.write_bytes(changed[: stat.st_size] + bytes(max(0, stat.st_size - len(changed))))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same name, and as a careless copy leaves it
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not torch.equal(store(encoder, folder).get([path]), before)
    others = [
        store(encoder, folder),
        store(encoder, folder, dtype="float16"),
        FeatureStore(encoder, [1, 3], "cls", CacheConfig(dir=folder)),
        FeatureStore(encoder, LEVELS, "all", CacheConfig(dir=folder)),
        store(load_encoder(dwarfs / "encoder", size=24), folder),
        store(load_encoder(dwarfs / "encoder", mean=(0.4, 0.5, 0.6)), folder),
        store(load_encoder(dwarfs / "encoder", dtype="bfloat16"), folder),
        store(load_encoder(dwarfs / "vit"), folder),
    ]
    assert len({one.folder for one in others}) == 8


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = pictures[1].read_bytes()

    def racing(medium: Any) -> bytes:
        data = content(medium)
        pictures[0].write_bytes(new)
        return data

    monkeypatch.setattr("perceptune.encoders.cache.media_loader.content", racing)
    old = store(encoder, tmp_path / "c").get(pictures[:1])
    monkeypatch.undo()
    ours, other = store(encoder, tmp_path / "c").get(pictures[:2])
    assert torch.allclose(ours, other, atol=1e-6)
    assert not torch.allclose(ours, old[0], atol=1e-3)


def test_broken_media_are_told_and_not_kept(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures[3].write_bytes(b"not a picture")
    pictures[20].unlink()
    kept = store(encoder, tmp_path / "c")
    with pytest.raises(MediaError, match=r"3\.png: not an image"):
        kept.precompute(pictures)
    told: list[str] = []
    for _ in range(2):
        kept.precompute(pictures, on_broken=lambda medium, error: told.append(f"{error}"))
    assert [line.split("/")[-1].split(":")[0] for line in told] == ["3.png", "20.png"] * 2
    counting = Counting(monkeypatch, encoder)
    kept.precompute(pictures, on_broken=lambda medium, error: None)
    assert counting.encoded == 0, "what is whole in their groups is not computed again"
    with pytest.raises(MediaError, match=r"20\.png: no such file"):
        kept.get(pictures[16:])


def test_a_damaged_row_is_computed_again(encoder: Encoder, pictures: list[Path], tmp_path: Path) -> None:
    kept = store(encoder, tmp_path / "c")
    before = kept.get(pictures)
    [rows] = kept.folder.glob("*.rows")
    data = bytearray(rows.read_bytes())
    data[5] ^= 1
    rows.write_bytes(data)
    again = store(encoder, tmp_path / "c")
    assert torch.equal(again.get(pictures), before)
    assert Store.open(kept.folder).missing([]) == []
    assert torch.equal(store(encoder, tmp_path / "c").get(pictures), before)


def build(encoder: Encoder, cache: Path, pictures: Path, *shares: tuple[int, int]) -> list[Fork]:
    """Processes that have just begun to build, each its share (rank, world)."""
    go = multiprocessing.get_context("fork").Event()
    forward = type(encoder).forward

    def slow(*given: Any) -> Any:
        time.sleep(0.1)
        return forward(*given)

    def work(rank: int, world: int) -> None:
        type(encoder).forward = slow  # type: ignore[method-assign]
        kept = store(encoder, cache)
        go.wait()
        kept.precompute(sorted(pictures.glob("*.png")), rank=rank, world=world)

    children = [Fork(partial(work, *share)) for share in shares]
    go.set()
    return children


def test_a_build_that_is_killed_again_and_again_gives_the_same_bits(
    encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    chance, held, after = random.Random(5), 0, []
    for _ in range(3):
        [child] = build(encoder, tmp_path / "killed", pictures[0].parent, (0, 1))
        time.sleep(0.05 + chance.random() * 0.15)
        child.kill()
        if list((tmp_path / "killed").glob("*/meta.json")):
            now = len(rows_of(features_folder(tmp_path / "killed")))
            assert held <= now
            held = now
        after.append(held)
    assert after[0] < 40, "the first kill, at least, came before the end"
    torch.set_num_threads(1)
    paths = sorted(pictures)
    store(encoder, tmp_path / "killed").precompute(paths)
    store(encoder, tmp_path / "whole").precompute(paths)
    whole = rows_of(features_folder(tmp_path / "whole"))
    assert len(whole) == 40
    assert rows_of(features_folder(tmp_path / "killed")) == whole


@pytest.mark.parametrize("share", [True, False])
def test_two_processes_build_one_cache(encoder: Encoder, pictures: list[Path], tmp_path: Path, share: bool) -> None:
    """Each its share, or both everything at the same time."""
    shares = ((0, 2), (1, 2)) if share else ((0, 1), (0, 1))
    for child in build(encoder, tmp_path / "both", pictures[0].parent, *shares):
        assert child.wait() == 0
    torch.set_num_threads(1)
    store(encoder, tmp_path / "one").precompute(sorted(pictures))
    whole = rows_of(features_folder(tmp_path / "one"))
    assert rows_of(features_folder(tmp_path / "both")) == whole
    written = sum(path.stat().st_size for path in features_folder(tmp_path / "both").glob("*.rows"))
    assert not share or written == 40 * 192, "nothing was computed twice"


def test_views_are_functions_of_picture_and_number(
    encoder: Encoder, dwarfs: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(encoder, tmp_path / "c", views=3)
    draws = list(range(40))
    seen = kept.get(pictures, draws)
    plain = kept.get(pictures)
    assert ((seen - plain).abs().amax((1, 2, 3)) > 1e-3).sum() > 35, "hardly a view is the whole picture"
    assert torch.equal(kept.get(pictures, [draw + 3 for draw in draws]), seen), "of three"
    assert not torch.allclose(kept.get(pictures[:1], [1]), seen[:1], atol=1e-3)
    counting = Counting(monkeypatch, encoder)
    assert torch.equal(store(encoder, tmp_path / "c", views=3).get(pictures, draws), seen)
    assert torch.equal(store(encoder, tmp_path / "c").get(pictures, draws), plain), "no views, no draw"
    assert counting.encoded == 0
    unflipped = Counting(monkeypatch, other := load_encoder(dwarfs / "encoder", flip=False))
    store(other, tmp_path / "c", views=3).get(pictures, draws)
    assert unflipped.encoded == 40, "the augmentation's settings belong to the key"
    elsewhere = store(encoder, tmp_path / "other", views=3).get([path.read_bytes() for path in pictures], draws)
    torch.testing.assert_close(elsewhere, seen, rtol=0, atol=1e-6)
