"""Shards that are damaged or change: indexed once, read by range, and what is wrong is said by name."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from pathlib import Path

import pytest

from perceptune.data import storage
from perceptune.data.media.source import MediaError, content, identity, open_image
from perceptune.errors import UserError
from perceptune.types import Member
from tars import PAIR, REMOTE, archive, put, read, row, task

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r" is a folder without a \.tar file"):
        task(tmp_path).samples("train")


def test_a_shard_that_was_cut_off_never_passes(place: str) -> None:
    whole = archive(
        [(f"{n}.{part}", data) for n in range(3) for (_, data), part in zip(PAIR, ("jpg", "json"), strict=True)]
    )
    used = 3 * (512 + 1024 + 512 + 512)
    put(f"{place}/a.tar", whole[: used + 512])
    assert len(read(f"{place}/a.tar")) == 3
    for length in [0, 1, 511, *range(512, used + 512, 256)]:
        put(f"{place}/a.tar", whole[:length])
        with pytest.raises(UserError, match=r"a\.tar(:| is) .*(cut off|no whole tar archive of)"):
            read(f"{place}/a.tar")


def test_damaged_and_compressed_shards(place: str) -> None:
    whole = archive([*PAIR, *[(name.replace("1", "2"), data) for name, data in PAIR]])
    for header in (512 + 1024, 2 * 512 + 1024 + 512):
        put(f"{place}/a.tar", whole[:header] + b"?" + whole[header + 1 :])
        with pytest.raises(UserError, match=rf"a\.tar is damaged: no member and no end .* at byte {header:,} of"):
            read(f"{place}/a.tar")
    for data in (b"?" + whole[1:], b"no tar at all" * 100):
        put(f"{place}/a.tar", data)
        with pytest.raises(UserError, match=r"a\.tar: is no whole tar archive"):
            read(f"{place}/a.tar")
    put(f"{place}/a.tar", gzip.compress(whole))
    with pytest.raises(UserError, match=r"a\.tar: is compressed.*store it as a plain tar"):
        read(f"{place}/a.tar")


def test_an_index_is_made_once_and_again_for_a_changed_shard(place: str, tmp_path: Path) -> None:
    put(f"{place}/a.tar", archive(PAIR))
    [old] = read(f"{place}/a.tar")
    assert isinstance(old.media["image"], Member)
    assert content(old.media["image"]) == PAIR[0][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "opened", None)
        assert read(f"{place}/a.tar") == [old]
        with pytest.raises(TypeError):
            read(f"{place}/a.tar", json_key="meta")  # other texts are needed: read anew
    assert identity(replace(old.media["image"], version="2")) != identity(old.media["image"])
    [kept] = (tmp_path / "cache" / "index").glob("[!.]*-*")
    put(f"{place}/a.tar", archive([("0.jpg", b"z"), ("0.json", row()), ("1.jpg", b"y" * 700), PAIR[1]]))
    _, new = read(f"{place}/a.tar")
    assert content(new.media["image"]) == b"y" * 700
    assert identity(new.media["image"]) != identity(old.media["image"])
    assert not kept.exists()


def test_a_shard_changed_while_in_use_is_not_read_from(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive(PAIR))
    [sample] = read(tmp_path / "a.tar")
    stat = (tmp_path / "a.tar").stat()
    os.utime(tmp_path / "a.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"a\.tar#1\.jpg: its archive was changed after it was indexed"):
        open_image(sample.media["image"])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"there is no .*a\.tar"):
        open_image(sample.media["image"])


def test_a_remote_shard_that_has_shrunk() -> None:
    put(f"{REMOTE}/a.tar", archive(PAIR))
    [sample] = read(f"{REMOTE}/a.tar")
    put(f"{REMOTE}/a.tar", b"x" * 600)
    with pytest.raises(UserError, match=r"a\.tar#1\.jpg: its archive was changed"):
        content(sample.media["image"])


def test_a_broken_picture_is_named_by_shard_and_member(tmp_path: Path) -> None:
    put(f"{tmp_path}/a.tar", archive(PAIR))
    [broken] = read(tmp_path / "a.tar")
    with pytest.raises(MediaError, match=r"/a\.tar#1\.jpg: not an image"):
        open_image(broken.media["image"])
    put(f"{tmp_path}/b.tar", archive([*PAIR, ("2.jpg", b""), ("2.json", row())]))
    with pytest.raises(UserError, match=r"/b\.tar, sample `2`: its `jpg` is an empty file"):
        task(tmp_path / "b.tar", skip_invalid=0).samples("train")
