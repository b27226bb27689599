"""Loss curves of two commits are the same to the last bit, or it is said where they part."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import loss_curves
from benchmarks.workloads import TRAININGS

LOSSES = [3.5, 2.25, 0.1]


def hexed(*losses: float) -> list[str]:
    return [loss.hex() for loss in losses]


def test_equal_curves_have_no_difference() -> None:
    assert loss_curves.difference(hexed(*LOSSES), hexed(*LOSSES)) is None


def test_a_single_bit_is_a_difference() -> None:
    said = loss_curves.difference(hexed(*LOSSES), hexed(*LOSSES[:2], math.nextafter(0.1, 1)))
    assert said is not None
    assert said.startswith("differs from step 3 on, by at most 1.39e-17 (step 3, 1.39e-16 of the loss)")


def test_the_first_step_and_the_largest_difference_are_said() -> None:
    said = loss_curves.difference(hexed(*LOSSES), hexed(3.5, 2.0, 0.2))
    assert said == "differs from step 2 on, by at most 0.25 (step 2, 0.111 of the loss)"


@pytest.mark.parametrize("new", [LOSSES[:2], []])
def test_a_missing_step_is_a_difference(new: list[float]) -> None:
    said = loss_curves.difference(hexed(*LOSSES), hexed(*new))
    assert said == f"3 steps in the old one, {len(new)} in the new one"


def test_files_kept_before_stand_for_a_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "a.json", tmp_path / "b.json"
    curves = dict.fromkeys(TRAININGS, hexed(*LOSSES))
    old.write_text(json.dumps(curves))
    new.write_text(json.dumps(curves | {"lora": hexed(3.5, 2.25, 0.2)}))
    assert loss_curves.main([str(old), str(old)]) == 0
    assert capsys.readouterr().out.count("equal") == len(TRAININGS)
    assert loss_curves.main([str(old), str(new), "--keep", str(tmp_path / "kept")]) == 1
    said = capsys.readouterr().out
    assert said.count("equal") == len(TRAININGS) - 1
    assert "lora     differs from step 3 on" in said
    assert json.loads((tmp_path / "kept/new.json").read_text()) == json.loads(new.read_text())
