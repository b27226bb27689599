"""Pictures: everything fits, right and wrong differ in shape, and awkward logs are drawn, too."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceptune.errors import UserError
from perceptune.tools.plots import figures, layout
from perceptune.tools.plots.figures import GridCell, answer_grid, curve_of, training_curve
from perceptune.tools.plots.layout import nice_ticks, smooth

BLUE = Image.new("RGB", (64, 64), "#0000ff")
LONG = "why does this very long question never end " * 5


def cell(question: str = "what?", answer: str = "red", truth: str = "red", **more: Any) -> GridCell:
    return GridCell(more.pop("image", BLUE), question, answer, truth, **more)


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def share_of(picture: np.ndarray[Any, np.dtype[np.uint8]], colour: str) -> float:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(picture.astype(int) - wanted).max(axis=2) < 12).mean())


def border_is_white(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bool:
    edges = (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:])
    return all(bool((edge == 255).all()) for edge in edges)


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'perceptune\[plots\]'"):
        training_curve(steps(3), tmp_path / "curve.png")
    assert not figures.has_matplotlib()


def test_a_grid_holds_every_image_whole(tmp_path: Path) -> None:
    answer_grid([cell(answer=f"a{n}") for n in range(5)], tmp_path / "new" / "grid.png", columns=2, title="Five")
    picture = pixels(tmp_path / "new" / "grid.png")
    assert picture.shape[1] == 24 + 200 + 20 + 200 + 24
    blue = share_of(picture, "#0000ff") * picture.shape[0] * picture.shape[1]
    assert blue == pytest.approx(5 * 200 * 200, rel=0.03)
    assert border_is_white(picture)


@pytest.mark.parametrize(
    "row",
    [
        cell(LONG, LONG, LONG),
        cell("Donaudampfschifffahrtsgesellschaftskapitaen" * 3, "x" * 90, "y"),
        cell("", "", ""),
        cell("Où est l'été ? 漢字 😀", "né", "漢"),
    ],
    ids=["long", "one word", "nothing", "letters"],
)
def test_no_text_is_cut_at_the_edge(row: GridCell, tmp_path: Path) -> None:
    answer_grid([row], tmp_path / "grid.png", title=LONG)
    assert border_is_white(pixels(tmp_path / "grid.png"))


@pytest.mark.parametrize("measure", [layout.text_width, figures.text_width])
def test_wrapped_lines_fit_and_lose_nothing_before_the_ellipsis(measure: layout.Measure) -> None:
    lines = layout.wrap(LONG, 14, 200, 50, measure)
    assert " ".join(lines).split() == LONG.split()
    cut = layout.wrap(LONG, 14, 200, 3, measure)
    assert (len(cut), cut[:2]) == (3, lines[:2])
    assert cut[2].endswith("…")
    broken = layout.wrap("x" * 300, 14, 200, 50, measure)
    assert "".join(broken) == "x" * 300
    assert max(measure(line, 14) for line in [*lines, *cut, *broken]) <= 200


def test_right_and_wrong_differ_in_shape_and_the_truth_follows_a_wrong_answer(tmp_path: Path) -> None:
    answer_grid([cell()], tmp_path / "right.png")
    answer_grid([cell(answer="green")], tmp_path / "wrong.png")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert wrong.shape[0] == right.shape[0] + 20, "one more line for the truth"
    assert share_of(right, figures.RIGHT) > 0 == share_of(right, figures.WRONG)
    assert share_of(wrong, figures.WRONG) > 0 == share_of(wrong, figures.RIGHT)
    assert [row.lines(200)[1][0] for row in (cell(), cell(answer="green"))] == ["✓ red", "✗ green"]
    assert cell(answer="green").lines(200)[2][0] == "right: red"


def test_a_dollar_sign_is_no_formula(tmp_path: Path) -> None:
    answer_grid([cell("costs $5 or $6_0^?", "$x$ {", "\\frac")], tmp_path / "grid.png", title="$1")


@pytest.mark.parametrize(
    ("row", "right"),
    [
        (cell(answer=" Red\n"), True),
        (cell(answer="reddish"), False),
        (cell(answer="crimson", correct=True), True),
        (cell(correct=False), False),
    ],
)
def test_the_verdict_is_the_task_s_if_it_gave_one(row: GridCell, right: bool) -> None:
    assert row.right is right


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_images_of_any_mode_and_shape(mode: str, tmp_path: Path) -> None:
    for size in ((1, 1), (300, 40), (40, 300)):
        answer_grid([cell(image=Image.new(mode, size))], tmp_path / "grid.png")
        assert border_is_white(pixels(tmp_path / "grid.png"))


def test_a_transparent_image_lies_on_white(tmp_path: Path) -> None:
    answer_grid([cell("", image=Image.new("RGBA", (64, 64), (0, 0, 0, 0)))], tmp_path / "grid.png")
    assert (pixels(tmp_path / "grid.png")[40:200, 40:200] == 255).all()


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 40), "#0000ff")
    image.getexif()[0x0112] = 6
    answer_grid([cell(image=image)], tmp_path / "grid.png")
    picture = pixels(tmp_path / "grid.png")
    assert tuple(picture[40, 124]) == (0, 0, 255)
    assert tuple(picture[124, 40]) == (255, 255, 255)


def test_an_empty_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        answer_grid([], tmp_path / "grid.png")


def steps(count: int, start: int = 1) -> list[dict[str, Any]]:
    return [
        {"event": "step", "samples": 32 * n, "loss": 2 * math.exp(-n / 50) + 0.1 * (n % 2), "lr": 0.1}
        for n in range(start, start + count)
    ]


def evals(*values: float | None) -> list[dict[str, Any]]:
    return [{"event": "eval", "samples": 640 * (n + 1), "accuracy": value} for n, value in enumerate(values)]


def test_a_curve_has_a_second_axis_only_with_evaluations(tmp_path: Path) -> None:
    training_curve(steps(200), tmp_path / "loss.png")
    training_curve(steps(200) + evals(0.2, 0.6, 0.8), tmp_path / "both.png")
    loss, both = pixels(tmp_path / "loss.png"), pixels(tmp_path / "both.png")
    assert loss.shape == both.shape == (440, 860, 3)
    assert border_is_white(loss)
    assert border_is_white(both)
    assert share_of(loss, figures.SCORE) == 0 < share_of(both, figures.SCORE)
    assert share_of(both, figures.LOSS) > 0.002


@pytest.mark.parametrize("samples", [2000, 2001, 1])
def test_points_lie_where_the_axes_say(samples: int) -> None:
    log = [*steps(100), {"event": "eval", "samples": samples, "accuracy": 0.5}]
    left, right = curve_of(log, "accuracy").axes
    raw, mean = left.lines
    losses = [(row["samples"], row["loss"]) for row in steps(100)]
    assert raw.get_xydata().tolist() == [list(point) for point in losses]
    assert mean.get_xydata().tolist() == [list(point) for point in smooth(losses)]
    assert right.lines[0].get_xydata().tolist() == [[samples, 0.5]]
    assert left.get_xlim() == right.get_xlim() == (0, max(samples, 3200))
    assert right.get_ylim()[0] == 0 < 1 <= right.get_ylim()[1] < 1.1


@pytest.mark.parametrize(
    ("log", "names"),
    [
        (steps(200) + evals(0.2, 0.6), ["loss of a step", "its running mean", "evaluation accuracy"]),
        (steps(3), ["training loss"]),
    ],
)
def test_the_legend_names_every_curve(log: list[dict[str, Any]], names: list[str]) -> None:
    (legend,) = curve_of(log, "accuracy").legends
    assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.parametrize(
    "log",
    [
        steps(1),
        [{"event": "step", "samples": 0, "loss": 0.0}],
        [{"event": "step", "samples": 5, "loss": -1.5}],
        [{"event": "step", "samples": n, "loss": 3.0} for n in range(9)],
        [{"event": "step", "samples": n, "loss": value} for n, value in enumerate((1e-9, 1e9, 1.0))],
        [*steps(60), {"event": "step", "samples": 1000, "loss": float("nan")}, *evals(None, float("inf"), 0.5)],
        [{"event": "start"}, *steps(3), {"event": "eval", "samples": 9000, "accuracy": 80.0}],
        [*steps(3), {"event": "eval", "samples": 9, "cider": 1.3}],
        [*steps(200), {"event": "step", "samples": 1000, "loss": 1e4}],
    ],
    ids=["one", "zero", "negative", "level", "wild", "not finite", "above one", "another metric", "outlier"],
)
def test_awkward_logs(log: list[dict[str, Any]], tmp_path: Path) -> None:
    training_curve(log, tmp_path / "curve.png")
    assert border_is_white(pixels(tmp_path / "curve.png"))


def test_a_resumed_run_is_drawn_once(tmp_path: Path) -> None:
    wrong = [{**row, "loss": 9.0} for row in steps(50, start=51)]
    training_curve(steps(100), tmp_path / "whole.png")
    training_curve(steps(50) + wrong + steps(50, start=51), tmp_path / "resumed.png")
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "resumed.png").read_bytes()


def test_a_log_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training step"):
        training_curve(evals(0.5), tmp_path / "curve.png")


@pytest.mark.parametrize(
    ("low", "high", "most"), [(0, 1, 5), (0, 38_575, 8), (-0.3, 0.2, 6), (0, 1e-7, 4), (2, 2, 5), (0, 0, 3)]
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, most: int) -> None:
    ticks = nice_ticks(low, high, most)
    assert ticks[0] <= low + 1e-9 * abs(high)
    assert ticks[-1] >= high * (1 - 1e-9)
    assert 2 <= len(ticks) <= most + 1
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-6
    assert np.allclose(np.diff(ticks), step)


def test_ticks_are_labelled_with_the_decimals_they_need() -> None:
    assert [layout.tick_label(tick, (0, 0.05, 0.1)) for tick in (0, 0.05, 0.1)] == ["0.00", "0.05", "0.10"]
    assert layout.tick_label(4_000_000, (0, 500_000)) == "4,000,000"
    assert layout.tick_label(2e9, (0, 1e9)) == "2e+09", "no wider than the margin"
