"""Damaged media are read or refused, and leave nothing behind; `make fuzz` goes on with this."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clips
import mutations
from perceptune.data.media.audio import read_audio
from perceptune.data.media.source import open_image
from perceptune.errors import UserError
from perceptune.serving import media_worker
from perceptune.serving.limits import Limits
from perceptune.serving.media_worker_pool import MediaWorkerPool, _Process

LIMITS = MediaWorkerPool.limits_of(Limits(), frames=8)


@pytest.fixture
def process() -> Iterator[_Process]:
    """What the server decodes in: a library that crashes must not take the tests along."""
    made = _Process()
    yield made
    made.end()


def test_real_files_are_read() -> None:
    for modality, files in mutations.seeds().items():
        for name, data in files:
            media_worker.checked_medium(data, modality, LIMITS[modality])
            assert len(data) < 30_000, name


@pytest.mark.parametrize("modality", sorted(mutations.seeds()))
def test_damaged_media_are_read_or_refused(process: _Process, modality: str) -> None:
    came: Counter[str] = Counter()

    @settings(max_examples=150, derandomize=True, deadline=None, database=None)
    @given(st.randoms(use_true_random=False))
    def send(chance: Random) -> None:
        _, data = mutations.drawn(modality, chance)
        answer, _ = ask(process, data, modality)  # `EOFError` if the process ends
        came["error" in answer] += 1

    running = process.start()
    send()
    assert running.poll() is None, "one process took all of them"
    assert came[True] > 20, "some are refused"
    assert len(list(Path(f"/proc/{running.pid}/fd").iterdir())) < 12
    process.end()


def ask(process: _Process, data: bytes, modality: str) -> tuple[dict[str, Any], bytes]:
    line = json.dumps({"modality": modality, "limits": LIMITS[modality], "size": len(data)}).encode()
    return process.ask(line + b"\n", data)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_what_the_process_makes_of_a_medium_holds_the_same(process: _Process, modality: str) -> None:
    """Pixel by pixel, sample by sample: what is not decoded twice must not come out differently."""
    for name, data in mutations.seeds()[modality]:
        answer, plain = ask(process, data, modality)
        assert answer == {"size": len(plain)}
        if modality == "image":
            assert plain.startswith(b"BM"), name
            assert open_image(plain).tobytes() == open_image(data).tobytes(), name
        else:
            assert plain.startswith(b"RIFF"), name
            for rate, seconds in ((16_000, 5.0), (22_050, 0.1)):
                np.testing.assert_array_equal(read_audio(plain, rate, seconds), read_audio(data, rate, seconds))
    assert ask(process, clips.clip(range(3)), "video")[1] == b""


def test_mutations_are_what_they_say() -> None:
    """The same for the same seed, and mostly not the file as it was."""
    files = {modality: [mutations.drawn(modality, Random(i)) for i in range(60)] for modality in mutations.seeds()}
    assert files == {modality: [mutations.drawn(modality, Random(i)) for i in range(60)] for modality in files}
    whole = {data for kind in mutations.seeds().values() for _, data in kind}
    assert sum(data in whole for kind in files.values() for _, data in kind) < 10


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        (b"Lavf", b"\xff\xfe\xef\x80", None),  # a tag that is no UTF-8
        (b"stsd", b"zzzz", "encoded in a way that FFmpeg does not know"),
    ],
    ids=["tag", "codec"],
)
def test_a_sound_in_an_mp4(was: bytes, becomes: bytes, said: str | None) -> None:
    """Both were found by chance: neither raised `UserError`."""
    from perceptune.data.media.audio import read_audio_header

    data = dict(mutations.seeds()["audio"])["M4A"]
    assert was in data
    broken = data.replace(was, becomes)
    if said is None:
        assert read_audio_header(broken).rate == 16_000
    else:
        with pytest.raises(UserError, match=said):
            read_audio_header(broken)


def test_a_clip_that_claims_a_billion_frames() -> None:
    """By the sizes of its pictures and by their times: neither is believed, and neither takes memory."""
    good = clips.clip(range(8))
    for tag, place in ((b"stsz", 12), (b"stts", 12)):
        huge = bytearray(good)
        at = huge.index(tag) + place
        huge[at : at + 4] = (10**9).to_bytes(4, "big")
        try:
            media_worker.checked_medium(bytes(huge), "video", LIMITS["video"])
        except UserError as error:
            assert "frames" in str(error) or "damaged" in str(error)  # noqa: PT017
