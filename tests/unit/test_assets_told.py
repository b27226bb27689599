"""What fetching an asset tells: its progress, and what keeps it from being made."""

from __future__ import annotations

import io
import sys

import pytest

from perceptune.cli.main import run as main
from perceptune.errors import UserError
from perceptune.models import convert_assets
from perceptune.models.pretrained import resolve
from perceptune.utils import downloads
from perceptune.utils.assets import Terms
from perceptune.utils.transformers_loading import quiet_loading
from shelf import Shelf


def test_unknown_name_is_told_before_anything_is_fetched(shelf: Shelf) -> None:
    with pytest.raises(UserError, match=r"unknown asset `tinny`; did you mean `tiny`\?"):
        downloads.fetch(["tiny", "tinny"])
    assert shelf.pip_calls == []


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("/usr/bin/python: No module named pip", r"has no pip; run `python -m ensurepip`"),
        (
            "WARNING: x\nERROR: No version\nERROR: No matching distribution\n[notice] update pip\n",
            r"cannot fetch `tiny-wheel==1.2`: No matching distribution; check the network and pip's index",
        ),
        (" \n", r"pip said nothing; check the network"),
    ],
)
def test_pip_failures(shelf: Shelf, stderr: str, message: str) -> None:
    shelf.pip_error = stderr
    with pytest.raises(UserError, match=message):
        downloads.path("tiny")
    assert shelf.files() == set()


def test_missing_extra_is_told_before_the_download(shelf: Shelf) -> None:
    shelf.set(needs="no_such_module")
    with pytest.raises(UserError, match=r'`no_such_module`; run `pip install "perceptune\[assets\]"`'):
        downloads.path("tiny")
    assert shelf.pip_calls == []


def test_terms_are_accepted_by_a_flag(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a recipe nor the command fetches it unasked; once it is there, nothing is asked."""
    shelf.set(terms=Terms("Tiny's terms of use", "https://example.org/terms"), is_default=False)
    for ask in (lambda: downloads.path("tiny"), lambda: resolve("tiny", "", False)):
        with pytest.raises(UserError, match=r"`tiny` .* Tiny's terms of use: read them at https://example\.org/terms"):
            ask()
    assert main(["assets", "tiny"]) == 2
    told = capsys.readouterr().err
    assert "run `perceptune assets tiny --accept-terms`" in told
    assert told.count("\n") == 1
    assert shelf.pip_calls == []
    assert "tiny" not in downloads.default_names()
    assert main(["assets", "tiny", "--accept-terms"]) == 0
    assert downloads.path("tiny") == downloads.present("tiny")
    assert main(["assets", "--list"]) == 0
    assert "licence: MIT; terms: Tiny's terms of use, https://example.org/terms" in capsys.readouterr().out


def test_too_little_space_is_told_before_the_download(shelf: Shelf) -> None:
    shelf.set(disk_mb=10**12)
    with pytest.raises(UserError, match=r"needs 1000000000002 MB and \d+ MB are free; make room or set"):
        downloads.path("tiny")
    assert shelf.pip_calls == []


def test_disk_that_fills_up(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:
        from safetensors import SafetensorError

        with convert_assets._full_disk_is_os_error():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setitem(convert_assets.CONVERTERS, "folder", convert)
    with pytest.raises(UserError, match=r"the disk of `.*cache` is full; make room or set PERCEPTUNE_CACHE"):
        downloads.path("tiny")


def test_cache_that_cannot_be_written(shelf: Shelf) -> None:
    shelf.cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write to `.*cache` \(.+\); set PERCEPTUNE_CACHE to a folder"):
        downloads.path("tiny")


def test_other_os_errors_are_not_dressed_up(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:
        raise OSError("a bug")

    monkeypatch.setitem(convert_assets.CONVERTERS, "folder", convert)
    with pytest.raises(OSError, match="a bug"):
        downloads.path("tiny")


def test_one_line_per_asset_without_a_terminal(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    downloads.path("tiny")
    downloads.path("tiny")
    assert capsys.readouterr() == ("", "fetching tiny (about 1 MB)\n")


def test_silent_without_progress(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    downloads.fetch(["tiny"], progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_on_a_terminal(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    downloads.path("tiny")
    assert "assets: ready" in terminal.getvalue()


def test_quiet_puts_the_settings_of_transformers_back() -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    with quiet_loading():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
