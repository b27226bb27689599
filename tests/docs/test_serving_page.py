"""docs/serving.md is executed: its code against a server of its own, its commands as far as the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_documentation import ROOT, blocks, commands

import perceptune
import runs
from perceptune.cli.main import parser, run
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from servers import load_runs, served

PAGE = ROOT / "docs/serving.md"


def test_its_code_runs(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(Path("runs/mine"), perceptune.build(runs.recipe(dwarfs, method=method)))
    Image.new("RGB", (30, 20), "red").save("photo.jpg")
    names: dict[str, Any] = {"__name__": "documentation"}
    with served(load_runs(["runs/mine"], Limits()), key=None) as server:
        for code in blocks(PAGE, "python"):
            assert "127.0.0.1:8000" in code or "client" in names
            exec(compile(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), str(PAGE), "exec"), names)
        names["client"].close()
    said = capsys.readouterr().out.splitlines()
    assert run(["answer", "runs/mine", "what color is this picture?", "--image", "photo.jpg"]) == 0
    assert said[0] == capsys.readouterr().out.rstrip("\n")
    assert any(line.startswith("CompletionUsage(") for line in said)
    assert said[-1] == said[0], "the Responses API answers the same question"


def test_its_commands_are_understood() -> None:
    found = commands(PAGE)
    assert len(found) >= 5
    for command in found:
        options = parser().parse_args(shlex.split(command)[1:])
        assert options.runs[0] == "runs/mine"


def test_its_limits_are_the_defaults() -> None:
    text, limits = PAGE.read_text(encoding="utf-8"), Limits()
    said = {
        "32 MiB, 30 s to send it; 512 MiB": (limits.body_mb, limits.body_seconds, limits.buffer_mb) == (32, 30, 512),
        "256 messages, 16 parts each, 16 media and 32,768 characters": (
            limits.messages,
            limits.parts,
            limits.media,
            limits.text_chars,
        )
        == (256, 16, 16, 32_768),
        "24 MiB, 4 x 4 to 64 million": (limits.image_mb, limits.image_side, limits.image_pixels) == (24, 4, 64_000_000),
        "above 16.8 million it is scaled down": limits.image_kept_pixels == 16_800_000,
        "25 MiB, 120 s": (limits.audio_mb, limits.audio_seconds) == (25, 120),
        "64 MiB, 10 minutes": (limits.video_mb, limits.video_seconds) == (64, 600),
        "100,000 frames, of which a run uses at most 32": (limits.video_encoded_frames, limits.video_frames)
        == (100_000, 32),
        "| decoding a medium | 20 s": limits.decode_seconds == 20,
        "512 tokens, 4 choices, 120 s": (limits.tokens, limits.choices, limits.seconds) == (512, 4, 120),
        "| waiting requests | 32 |": limits.queue == 32,
    }
    for words, holds in said.items():
        assert words in text
        assert holds, words
