"""A file that is written appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perceptune.utils.atomic_io import write_whole


def test_the_new_content_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"first", b"second"):
        write_whole(path, [content[:2], content[2:]])
        assert path.read_bytes() == content
        assert [*tmp_path.iterdir()] == [path]


def test_what_fails_half_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield b"new"
        [half] = tmp_path.glob(".a.*.tmp")  # the name by which leftovers are found
        assert half != path
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_whole(path, chunks())
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old"
