"""Rows on a disk that refuses: what is there is read, what is new stays in memory, and a note says so once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.text_state_cache import TextStates
from perceptune.utils import downloads
from perceptune.utils.downloads import cache_dir, scratch_dir
from perceptune.utils.row_store import files
from perceptune.utils.row_store.cache import DiskCache
from perceptune.utils.row_store.store import Store, digest_of

META = {"dtype": "float32", "shape": [3]}
KEYS = [digest_of(bytes([i])) for i in range(6)]


def rows(*values: int) -> list[Tensor]:
    return [torch.full((3,), float(value)) for value in values]


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def write(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(files, "_write", write)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT])
def test_new_rows_stay_in_memory(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(tmp_path / "s", META).append(KEYS[:2], rows(0, 1))
    refuse(monkeypatch, number)
    cache = DiskCache(tmp_path / "s", META, 1)
    assert (cache.is_shared, cache.full) == (True, False)
    for step in (2, 4):
        cache.append(KEYS[step : step + 2], rows(step, step + 1))
        cache.refresh()
    assert not cache.is_shared
    assert cache.missing(KEYS) == []
    assert torch.equal(torch.stack(cache.read(KEYS)), torch.stack(rows(*range(6))))  # type: ignore[arg-type]
    assert len(Store(tmp_path / "s", META)) == 2
    note = capsys.readouterr().err
    assert (note.count("note: "), "PERCEPTUNE_CACHE" in note) == (1, True)


def test_memory_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = DiskCache(tmp_path / "file/s", META, 0)
    cache.append(KEYS[:1], rows(0))
    assert cache.full
    assert cache.missing(KEYS) == KEYS
    assert cache.read(KEYS[:1]) == [None]


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOSPC)
    with pytest.raises(UserError, match="the disk is full"):
        DiskCache(tmp_path / "s", META, 1).append(KEYS[:1], rows(0))


def test_a_folder_that_cannot_even_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", stat)
        cache = DiskCache(tmp_path / "hidden/s", META, 1)
    cache.append(KEYS[:1], rows(7))
    assert torch.equal(cache.read(KEYS[:1])[0], rows(7)[0])  # type: ignore[arg-type]
    assert cache.missing(KEYS[:2]) == KEYS[1:2]


def test_states_of_texts_that_cannot_be_kept_are_computed(
    dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from perceptune.config.schema import LMConfig
    from perceptune.models.slots.build import load_lm

    lm: FrozenLM = load_lm(LMConfig(id=str(dwarfs / "lm")))
    (tmp_path / "file").touch()
    states = TextStates(lm, 1, 0, folder=tmp_path / "file/c", disk_megabytes=10)
    states.precompute([(5, 6, 7), (8, 9)], uses=100)
    assert states.kept == "nowhere"
    assert capsys.readouterr().err.count("note: ") == 1
    ids, mask = torch.tensor([[5, 6, 7], [0, 8, 9]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert torch.equal(states.get(ids, mask), lm.hidden_states_at(1, ids, mask))


def test_a_user_without_a_home_folder_has_a_cache_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PERCEPTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads.Path, "expanduser", homeless)
    assert cache_dir() == scratch_dir()
    assert scratch_dir().is_dir()
