"""The picture of a comparison: labels apart, everything inside, values where the axes say."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceptune.tools.plots.figures import trade_off
from perceptune.tools.plots.layout import Mark, label_boxes

NAMES = ["epalm", "epalm-pt", "epalm-lin", "limber", "promptfuse", "magma", "magma-all", "lora", "full", "frozen"]


def test_labels_of_crowded_points_do_not_cover_one_another() -> None:
    chance = np.random.default_rng(0)
    centres = [(400 + 30 * float(x), 200 + 20 * float(y)) for x, y in chance.normal(size=(10, 2))]
    boxes = label_boxes(centres, NAMES, (80, 8, 852, 446))
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_everything_lies_inside(value: float, tmp_path: Path) -> None:
    marks = [Mark(name, 10 ** (i % 9), value, (value - 0.1, value + 0.1)) for i, name in enumerate(NAMES)]
    trade_off([*marks, Mark("a single very long name of a method", 10**9, value)], tmp_path / "p.png", "accuracy")
    with Image.open(tmp_path / "p.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert all((edge == 255).all() for edge in (picture[:6], picture[-6:], picture[:, :6], picture[:, -6:]))


def test_more_parameters_lie_to_the_right_and_higher_values_above(tmp_path: Path) -> None:
    def centre(trained: int, value: float) -> tuple[float, float]:
        trade_off([Mark("", trained, value), Mark("", 1, 0.0), Mark("", 10**8, 1.0)], tmp_path / "p.png", "accuracy")
        with Image.open(tmp_path / "p.png") as image:
            blue = np.abs(np.asarray(image.convert("RGB")).astype(int) - (11, 98, 176)).max(axis=2) < 12
        ys, xs = np.nonzero(blue[:, 150:-90])
        return float(xs.mean()), float(ys.mean())

    (x1, y1), (x2, y2), (x3, y3) = centre(10**3, 0.5), centre(10**4, 0.5), centre(10**5, 0.75)
    assert 60 < x2 - x1 < 100, "a tenth of the width for a power of ten"
    assert x3 - x2 == pytest.approx(x2 - x1, abs=1)
    assert y1 == pytest.approx(y2, abs=0.5)
    assert y3 < y2


def test_nothing_trained_has_no_place_on_the_axis(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each with something trained"):
        trade_off([Mark("frozen", 0, 0.5)], tmp_path / "p.png", "accuracy")
