"""How long a training will take is said once, after a few steps, also where no progress bar is shown."""

from __future__ import annotations

import pytest

from perceptune.utils import run_log


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, seconds: float, total: int) -> str:
    """What appears on stderr during steps that take so many seconds."""
    now = [0.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    with run_log.progress(total, "train", done=100, timed=10) as bar:
        for _ in range(30):
            now[0] += seconds
            bar.advance()
    return capsys.readouterr().err


def test_the_time_left_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(capsys, monkeypatch, seconds=1.5, total=400)
    assert told == "1.50 s a step: 290 steps more take about 8 min at most\n"


def test_a_short_rest_is_not_worth_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(capsys, monkeypatch, seconds=0.05, total=400) == ""


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert said(capsys, monkeypatch, seconds=1.5, total=400) == ""
