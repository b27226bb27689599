"""Rows read when they are asked for: the same as read at once, in constant memory, and never from another file."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import perceptune
import support
from perceptune.data import storage
from perceptune.data.lazy_rows import LazyRows, select
from perceptune.data.subset import subset
from perceptune.data.tasks.jsonl import JSONLines
from perceptune.errors import UserError
from perceptune.evaluation.runner import select_subset
from perceptune.types import Sample
from perceptune.utils.downloads import scratch_dir

ENDS = (b"\n", b"\r\n", b"\n\n", b" \n\t\n", b"\n\xe2\x80\x83\n")  # the last: a line with a wide space


pytestmark = pytest.mark.usefixtures("own_cache")


def task(path: Path, **options: Any) -> JSONLines:
    return JSONLines(JSONLines.Options(train=path, check_files=False, **options))


def random_rows(seed: int, folder: Path) -> tuple[bytes, list[Sample]]:
    """A file with everything that is allowed between and in rows, and what it says."""
    draw = random.Random(seed)
    data, samples = draw.choice([b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", b"\n \n"]), []
    for number in range(draw.randint(1, 40)):
        line = data.count(b"\n") + 1
        image = draw.choice([None, "a.jpg", "ü/b.png"])
        targets = [f"{draw.choice(['ж', 'a', chr(0x2028)])} {n} x" for n in range(draw.randint(1, 3))]
        row: dict[str, Any] = {"image": image, "prompt": "q" * draw.randint(1, 9000), "targets": targets}
        meta = {"page": draw.random()} if draw.random() < 0.3 else {}
        named = {"id": f"s{number}"} if draw.random() < 0.5 else {}
        end = b"" if draw.random() < 0.05 else draw.choice(ENDS)
        data += json.dumps(row | meta | named, ensure_ascii=draw.random() < 0.5).encode() + end
        name = named.get("id", f"train-{line:06d}")
        media = {} if image is None else {"image": folder / image}
        samples.append(Sample(name, media, row["prompt"], tuple(targets), meta))
        if not end:
            break
    return data, samples


@pytest.mark.parametrize("seed", range(30))
def test_lazy_rows_are_the_rows(seed: int, tmp_path: Path) -> None:
    data, expected = random_rows(seed, tmp_path)
    file = tmp_path / "rows"
    file.write_bytes(gzip.compress(data) if seed % 3 == 0 else data)
    found = task(file).samples("train")
    assert list(found) == expected
    assert len(found) == len(expected)
    draw = random.Random(seed)
    for _ in range(20):
        index = draw.randrange(-len(expected), len(expected))
        assert found[index] == expected[index]
        ends = [draw.choice([None, draw.randrange(-50, 50)]) for _ in range(2)]
        part = slice(*ends, draw.choice([None, 1, 2, -1, -3]))
        assert list(found[part]) == expected[part]
        assert list(found[part][1:]) == expected[part][1:], "a slice of a slice"
    assert list(reversed(found)) == expected[::-1]
    assert expected[-1] in found
    for beyond in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            found[beyond]


def numbered(path: Path, n: int, end: str = "\n") -> Path:
    rows = (json.dumps({"image": f"{i // 2}.jpg", "prompt": "?!a", "targets": f"a {i}", "id": i}) for i in range(n))
    path.write_text("".join(row + end for row in rows), newline="")
    return path


@pytest.mark.parametrize("make", [list, lambda rows: rows], ids=["list", "lazy"])
def test_a_selection_reads_nothing_by_itself(make: Callable[[Any], Any], tmp_path: Path) -> None:
    rows = make(task(numbered(tmp_path / "a.jsonl", 50)).samples("train"))
    assert select(rows, range(50)) is rows
    picked = subset(50, 7, seed=3)
    chosen = select(rows, picked)
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert len(chosen) == 7
    (tmp_path / "b.jsonl").rename(tmp_path / "a.jsonl")
    assert [sample.id for sample in chosen] == [str(index) for index in picked]
    assert [sample.id for sample in select(chosen, [6, 0])] == [str(picked[6]), str(picked[0])]
    assert [sample.id for sample in chosen[1:3]] == [str(index) for index in picked[1:3]]
    assert chosen[-1].id == str(picked[-1])


def test_the_evaluated_samples_are_a_selection(tmp_path: Path) -> None:
    own = task(numbered(tmp_path / "a.jsonl", 50))
    for size in (None, 9):
        chosen = select_subset(own, "train", size)
        assert isinstance(chosen, LazyRows)
        assert len(chosen) == (size or 50)


def test_threads_read_what_they_ask_for(tmp_path: Path) -> None:
    found = task(numbered(tmp_path / "a.jsonl", 500, end="\n\n")).samples("train")

    def read(seed: int) -> bool:
        wanted = random.Random(seed).choices(range(500), k=200)
        return [found[index].targets for index in wanted] == [(f"a {index}",) for index in wanted]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_memory_is_eight_bytes_a_row(tmp_path: Path) -> None:
    n = 5_000
    file = numbered(tmp_path / "a.jsonl", n)
    task(file).samples("train")[0]  # what is made once for all files is no part of it
    tracemalloc.start()
    try:
        found = task(file).samples("train")
        held, peak = tracemalloc.get_traced_memory()
        for _ in found:
            pass
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    room = 150_000  # buffers, and names that pathlib interns
    assert held < 10 * n + room
    assert peak < 50 * n + room, "hashes of the ids and their order, for a moment"
    assert after - held < room


def test_a_gzipped_file_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl.gz"
    rows = numbered(tmp_path / "a.jsonl", 30).read_bytes()
    file.write_bytes(gzip.compress(rows))
    kept = tmp_path / "cache" / "index"
    assert len(task(file).samples("train")) == 30
    with monkeypatch.context() as patch:
        patch.setattr(gzip, "open", None)
        assert len(task(file).samples("train")) == 30
    assert [path.read_bytes() for path in kept.glob("[!.]*")] == [rows]
    file.write_bytes(gzip.compress(rows + rows.replace(b'"id": ', b'"id": 9')))
    assert len(task(file).samples("train")) == 60, "made anew from the changed file"
    assert len([*kept.glob("[!.]*")]) == 1, "and the old one is gone"


def test_what_a_killed_process_left_is_removed() -> None:
    whole = storage.derived("a", "1", lambda: [b"x"])
    half = whole.with_name(f".{whole.name}.0.tmp")
    half.touch()
    assert storage.derived("a", "2", lambda: [b"y"]).read_bytes() == b"y"
    assert not half.exists()


def test_only_one_of_many_makes_a_file() -> None:
    made = []

    def chunks() -> list[bytes]:
        time.sleep(0.05)
        made.append(1)
        return [b"x"]

    with ThreadPoolExecutor(6) as pool:
        paths = set(pool.map(lambda _: storage.derived("a", "1", chunks), range(6)))
    assert len(paths) == len(made) == 1


def test_what_a_cache_that_cannot_be_written_would_hold_ends_with_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(tmp_path / "file"))
    made = [storage.derived(str(tmp_path), "1", lambda text=text: [text]) for text in (b"x", b"made again")]
    assert made[0] == made[1]
    assert made[0].read_bytes() == b"x"
    assert made[0].is_relative_to(scratch_dir())


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("{}\n")


def rewrite(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [append, rewrite, replace, Path.unlink])
def test_a_file_changed_while_in_use_is_one_clear_error(change: Callable[[Path], None], tmp_path: Path) -> None:
    found = task(numbered(tmp_path / "a.jsonl", 9)).samples("train")
    assert found[3].id == "3"
    change(tmp_path / "a.jsonl")
    for read in (lambda: found[3], lambda: list(found), lambda: next(iter(found[4:]))):
        with pytest.raises(UserError, match=r"a\.jsonl was changed or removed while it was in use: start again"):
            read()


def test_a_file_changed_while_it_is_gone_through(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 9)
    rows = iter(task(path).samples("train"))
    next(rows)
    append(path)
    with pytest.raises(UserError, match="was changed"):
        next(rows)


def test_equal_hashes_are_not_equal_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceptune.data.lazy_rows.hash", len, raising=False)
    path = numbered(tmp_path / "a.jsonl", 12)
    assert len(task(path).samples("train")) == 12
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, "", rows[11], rows[2]]))
    with pytest.raises(UserError, match="line 14: the id `11` is that of line 12, too"):
        task(path).samples("train")


def test_every_training_text_is_checked_before_the_first_step(dwarfs: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "what?" * (1 if n < 5 else 30), "targets": str(n), "image": None} for n in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", tmp_path / "a.jsonl", text={"max_tokens": 50})
    with pytest.raises(UserError, match=r"sample `train-000006`: \d+ tokens, more than `text.max_tokens` = 50"):
        perceptune.train(given, tmp_path / "run")
