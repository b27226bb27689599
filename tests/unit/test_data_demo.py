"""The made-up data: whole, the same for the same seed, every answer to be seen or heard."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from perceptune.data.media.audio import read_audio
from perceptune.data.media.source import open_image
from perceptune.data.media.synthetic import AUDIO_EVENTS, COLORS, SHAPES, draw_image, draw_video, play
from perceptune.data.media.video import read_frames
from perceptune.errors import UserError
from perceptune.tools.datasets import demo
from perceptune.tools.datasets.demo import SIZES, write_demo
from perceptune.tools.datasets.validate import CheckOptions, validate_dataset

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "all"
    write_demo(folder, "all")
    return folder


def test_the_set_is_clean_to_the_last_sample(everything: Path) -> None:
    checked = validate_dataset(
        str(everything / "recipe.yaml"), options=CheckOptions(decode=True, contents=True, tokens=False)
    )
    assert checked.report["problems"] == {}
    assert checked.report["shared_media"] == {}
    train = checked.report["splits"]["train"]
    assert {name: media["distinct"] for name, media in train["media"].items()} == {
        "image": SIZES["train"], "audio": SIZES["train"], "video": 160,
    }  # fmt: skip
    for found in checked.report["splits"].values():
        assert found["copied_media"]["count"] == found["repeated_rows"]["count"] == 0


def test_every_answer_of_the_test_is_one_to_be_learnt(everything: Path) -> None:
    answers = {}
    for split in SIZES:
        rows = [json.loads(line) for line in (everything / f"{split}.jsonl").read_text().splitlines()]
        answers[split] = {(row["prompt"], *row["targets"]) for row in rows}
    assert answers["test"] <= answers["train"]
    assert answers["validation"] <= answers["train"]


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_the_seed_decides_everything(modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sizes in (demo.SIZES, demo.SIZES_OF_VIDEOS):
        for split in sizes:
            monkeypatch.setitem(sizes, split, 4)
    sets = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = write_demo(tmp_path / name, modality, seed=seed)
        assert recipe == tmp_path / name / "recipe.yaml"
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        sets[name] = {path.relative_to(tmp_path / name): path.read_bytes() for path in files}
    assert sets["a"] == sets["b"]
    assert sets["a"].keys() == sets["c"].keys()
    same = [path for path, data in sets["a"].items() if data == sets["c"][path]]
    assert same == [Path("recipe.yaml")]


def test_a_folder_with_something_in_it_is_left_alone(everything: Path, tmp_path: Path) -> None:
    before = sorted(everything.rglob("*"))
    with pytest.raises(UserError, match="is there already, and not empty"):
        write_demo(everything, "image")
    assert sorted(everything.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is there already"):
        write_demo(tmp_path / "file", "image")


@pytest.mark.parametrize("color", COLORS)
def test_pictures_show_their_color_and_shapes_differ(color: str) -> None:
    areas = []
    for shape in SHAPES:
        pixels = np.asarray(open_image(draw_image(random.Random(1), color, shape)))
        painted = (pixels == COLORS[color]).all(-1)
        areas.append(painted.sum())
        assert painted.any()
    assert len(set(areas)) == len(SHAPES), "of the same radius each shape has an area of its own"


@pytest.mark.parametrize("blinks", [True, False])
def test_clips_move_and_blink_or_not(blinks: bool) -> None:
    data = draw_video(random.Random(2), "red", "star", blinks)
    red = [np.asarray(frame)[..., 0] > 130 for frame in read_frames(data, 16)]
    assert sum(not frame.any() for frame in red) == (8 if blinks else 0)
    seen = [frame for frame in red if frame.any()]
    assert (seen[0] ^ seen[-1]).sum() > 1.5 * seen[0].sum(), "it has left its place"


def spectrum(data: bytes) -> tuple[float, float]:
    """Strongest frequency in Hz of the first and of the last tenth of the first sound."""
    wave = read_audio(data, 16_000, 2.0)
    loud = np.flatnonzero(np.abs(wave) > 0.1)
    start = loud[0]
    end = start + round(0.29 * 16_000)
    tops = []
    for part in (wave[start : start + 800], wave[end - 800 : end]):
        power = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        tops.append(float(np.argmax(power)) * 16_000 / len(part))
    return tops[0], tops[1]


def test_sounds_are_what_they_are_called() -> None:
    heard = {name: spectrum(play(random.Random(3), name, 1)) for name in AUDIO_EVENTS}
    first, last = heard["a rising chirp"]
    assert last > 2 * first
    first, last = heard["a falling chirp"]
    assert first > 1.5 * last
    assert max(heard["a low tone"]) < 400
    assert min(heard["a high tone"]) > 2_000


@pytest.mark.parametrize("times", [1, 2, 3])
def test_sounds_are_heard_so_often(times: int) -> None:
    wave = np.abs(read_audio(play(random.Random(4), "a low tone", times), 16_000, 2.0))
    loud = np.convolve(wave, np.ones(1_000) / 1_000, "same") > 0.05
    assert np.diff(loud.astype(int)).tolist().count(1) == times
