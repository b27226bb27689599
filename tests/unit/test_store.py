"""The store of tensor rows: bits come back, nothing that was stored is lost, damage is found, memory stays small."""

from __future__ import annotations

import errno
import os
import random
import time
import tracemalloc
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch

from forks import Fork
from perceptune.errors import UserError
from perceptune.utils.row_store import files as row_files
from perceptune.utils.row_store.store import STORE_META, Store

SHAPE = [2, 3]


def meta(**changes: Any) -> dict[str, Any]:
    return {"kind": "test", "dtype": "float32", "shape": SHAPE, **changes}


def key(i: int) -> bytes:
    return blake2b(str(i).encode(), digest_size=16).digest()


def row(i: int, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(i))


def fill(store: Store, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, 16):
        some = list(numbers)[start - numbers.start :][:16]
        store.append([key(i) for i in some], [row(i) for i in some])


def wrong(store: Store, numbers: range) -> list[int]:
    """Numbers whose row is not there bit by bit."""
    found = store.read([key(i) for i in numbers])
    return [i for i, one in zip(numbers, found, strict=True) if one is None or not torch.equal(one, row(i))]


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8"])
def test_rows_come_back_bit_by_bit(tmp_path: Path, dtype: str) -> None:
    store = Store(tmp_path / "s", meta(dtype=dtype, shape=[-1, 3]))
    rows = [(row(i, (i, 3)) * 50).abs().to(getattr(torch, dtype)) for i in range(40)]  # the first has no element
    keys = [bytes(15) + bytes([i]) for i in range(39)] + [b"\1" + bytes(15)]  # zeros at either end
    store.append(keys, rows)
    for reader in (store, Store(tmp_path / "s", meta(dtype=dtype, shape=[-1, 3]))):
        found = reader.read([*keys, key(0)])
        assert found.pop() is None
        assert all(one is not None and torch.equal(one, kept) for one, kept in zip(found, rows, strict=True))
        assert (len(reader), reader.missing([key(0), *keys, key(0)])) == (40, [key(0)])
        assert reader.bytes == sum(path.stat().st_size for path in (tmp_path / "s").glob("*-*"))


def test_shards_roll_over_and_the_newest_row_counts(tmp_path: Path) -> None:
    store = Store(tmp_path, meta(), shard_bytes=500)
    fill(store, range(1500))  # beyond the tail that is merged now and then
    store.append([key(5)], [row(-5)])
    fill(store, range(1500, 3000))
    store.append([key(2999)], [row(-2999)])
    assert all(path.stat().st_size <= 500 for path in files(tmp_path, ".rows"))
    for reader in (store, Store(tmp_path, meta())):
        assert wrong(reader, range(3000)) == [5, 2999]
        assert all(
            torch.equal(one, row(-i)) for one, i in zip(reader.read([key(5), key(2999)]), (5, 2999), strict=True)
        )
        assert len(reader) == 3000


def test_other_rows_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, meta())
    store.append([key(0)], [row(0)])
    with pytest.raises(UserError, match=r"meta\.json: describes other rows"):
        Store(tmp_path, meta(dtype="float16"))
    with pytest.raises(ValueError, match="shape"):
        store.append([key(1)], [row(1, (3, 2))])
    with pytest.raises(ValueError, match="16 bytes"):
        store.append([b"short"], [row(1)])
    (tmp_path / STORE_META).write_text("{")
    with pytest.raises(UserError, match="damaged; remove the folder"):
        Store(tmp_path, meta())


def test_rows_of_other_writers_are_seen(tmp_path: Path) -> None:
    ours, theirs = Store(tmp_path, meta()), Store(tmp_path, meta())
    fill(theirs, range(100))
    fill(ours, range(100, 150))
    assert len(ours) == 50
    ours.refresh()
    assert wrong(ours, range(150)) == []
    child = os.fork()
    if not child:  # writes to a pair of its own, not to its parent's
        fill(ours, range(150, 200))
        os._exit(0)
    os.waitpid(child, 0)
    fill(ours, range(200, 250))
    ours.refresh()
    assert wrong(ours, range(250)) == []
    assert ours.verify() == {}


def test_kill_9_loses_nothing_that_was_reported(tmp_path: Path) -> None:
    chance, stored, said = random.Random(3), 0, tmp_path / "said"

    def write(i: int) -> None:
        store = Store(tmp_path / "s", meta(), shard_bytes=20_000)
        while True:
            store.append([key(j) for j in range(i, i + 5)], [row(j) for j in range(i, i + 5)])
            i += 5
            print(i, flush=True)

    for _ in range(4):
        said.unlink(missing_ok=True)
        with Fork(partial(write, stored), said):
            while not said.is_file() or "\n" not in said.read_text():
                time.sleep(0.005)
            time.sleep(chance.random() * 0.2)
        stored = max(map(int, said.read_text().split("\n")[:-1]))
        store = Store(tmp_path / "s", meta())
        assert wrong(store, range(stored)) == []
        assert store.verify() == {}


@pytest.mark.parametrize("suffix", [".rows", ".index"])
def test_torn_files_lose_only_their_end(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(1)
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        fill(Store(folder, meta(), shard_bytes=1000), range(100))
        torn = chance.choice(files(folder, suffix))
        torn.write_bytes(torn.read_bytes()[: chance.randrange(torn.stat().st_size)])
        store = Store(folder, meta())
        lost = [i for i in range(100) if store.missing([key(i)])]
        assert 0 < len(lost) <= 42
        assert wrong(store, range(100)) == lost
        for i in lost:
            store.append([key(i)], [row(i)])
        assert wrong(Store(folder, meta()), range(100)) == []


@pytest.mark.parametrize("suffix", [".rows", ".index"])
def test_a_flipped_bit_is_found_and_the_row_can_be_written_again(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(2)
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        fill(Store(folder, meta()), range(50))
        [path] = files(folder, suffix)
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        store = Store(folder, meta())
        [lost] = wrong(store, range(50))
        assert store.missing([key(i) for i in range(50)]) == [key(lost)]
        assert store.verify() == {path: 1}
        store.append([key(lost)], [row(lost)])
        assert wrong(store, range(50)) == []
        assert wrong(Store(folder, meta()), range(50)) == []


def test_an_older_good_row_comes_to_light_when_the_newest_is_damaged(tmp_path: Path) -> None:
    fill(Store(tmp_path, meta()), range(3))
    fill(Store(tmp_path, meta()), range(3))
    newest = files(tmp_path, ".rows")[-1]
    newest.write_bytes(bytes(newest.stat().st_size))
    assert wrong(Store(tmp_path, meta()), range(3)) == []


@pytest.mark.parametrize("broken", [".rows", ".index"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    store = Store(tmp_path, meta())
    fill(store, range(20))
    write = row_files._write

    def full(file: Any, data: bytes) -> None:
        if str(file.name).endswith(broken):
            write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data)

    monkeypatch.setattr(row_files, "_write", full)
    with pytest.raises(UserError, match=r"the disk is full; nothing already saved was touched.*`cache\.dir`"):
        fill(store, range(20, 40))
    monkeypatch.setattr(row_files, "_write", write)
    assert wrong(store, range(20)) == []
    fill(store, range(20, 60))
    for reader in (store, Store(tmp_path, meta())):
        assert wrong(reader, range(60)) == []
        assert reader.verify() == {}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written.*`cache\.features: memory`"):
        fill(Store(tmp_path / "file/s", meta()), range(1))


def test_compacting_keeps_every_good_row_and_leaves_living_writers_alone(tmp_path: Path) -> None:
    for start in range(0, 100, 10):
        fill(Store(tmp_path, meta()), range(start, start + 10))
    torn = files(tmp_path, ".index")[0]
    torn.write_bytes(torn.read_bytes() + b"torn")
    orphan = tmp_path / "0-0.rows"
    orphan.touch()
    damaged = files(tmp_path, ".rows")[4]
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    store, writing = Store(tmp_path, meta()), Store(tmp_path, meta())
    [lost] = wrong(Store(tmp_path, meta()), range(100))
    assert store.compact() == 0, "all of them are young"
    assert len(files(tmp_path, ".rows")) == 11
    assert store.compact(idle=0) > 0
    assert not orphan.exists()
    assert len(files(tmp_path, ".rows")) == 1
    assert store.verify() == {}
    for reader in (store, Store(tmp_path, meta())):
        assert wrong(reader, range(100)) == [lost]
    writing.refresh()  # it had looked before; its files are gone, the rows are not
    assert wrong(writing, range(100)) == [lost]
    fill(writing, range(100, 110))
    Store(tmp_path, meta()).compact(idle=0)
    fill(writing, range(110, 120))
    assert wrong(Store(tmp_path, meta()), range(100, 120)) == []


def test_the_index_of_many_rows_is_small(tmp_path: Path) -> None:
    store = Store(tmp_path, meta(dtype="uint8", shape=[1]))
    one = torch.zeros(1, dtype=torch.uint8)
    for start in range(0, 100_000, 5000):
        store.append([key(i) for i in range(start, start + 5000)], [one] * 5000)
    del store
    tracemalloc.start()
    store = Store(tmp_path, meta(dtype="uint8", shape=[1]))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store) == 100_000
    assert held < 4.5 * 2**20
    assert peak < 24 * 2**20


def test_reading_a_large_cache_does_not_fill_the_memory(tmp_path: Path) -> None:
    """400 MiB are read; at most 64 MiB of them, and what the allocator holds, stay resident."""
    shape = [64, 1024]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def read() -> None:  # in a process of its own: what other tests have left does not count
        store, one = Store(tmp_path / "s", meta(shape=shape)), torch.zeros(shape)
        for i in range(1600):
            store.append([key(i)], [one])
        before, most = resident(), 0
        for i in range(1600):
            assert store.read([key(i)])[0] is not None
            most = max(most, resident())
        print((most - before) // 2**20)

    assert Fork(read, tmp_path / "said").wait() == 0
    assert int((tmp_path / "said").read_text()) < 100
