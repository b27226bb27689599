"""`compare --timing`: steps of several methods side by side, on both backbones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import blips
import support
from perceptune.cli.main import run as cli
from perceptune.encoders.base import Encoder
from perceptune.methods.qformer.maple import MaPLe
from perceptune.utils import timing


@pytest.fixture(scope="module", params=["splice", "instructblip"])
def written(request: pytest.FixtureRequest, dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A recipe file and its methods."""
    folder = tmp_path_factory.mktemp("timing")
    data = support.save_data(folder / "data", rows=12)
    if request.param == "splice":
        given, methods = support.recipe(dwarfs / "lm", dwarfs / "encoder") | {"method": "epalm"}, "epalm,epalm-lin"
    else:
        given, methods = blips.recipe(blips.save_blip(folder / "blip", "llama")), "full,maple"
    given |= {"task": {"name": "jsonl", "train": str(data), "validation": str(data)}, "cache": {"features": "memory"}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(given))
    return path, methods


def command(written: tuple[Path, str], out: Path, *more: str) -> list[str]:
    path, methods = written
    few = ["method.n_levels=2"] if "epalm" in methods else []
    given = ["--methods", methods, "train.batch_size=4", *few, "--timing", "--out", str(out)]
    return ["compare", str(path), *given, *more]


def timed(written: tuple[Path, str], out: Path, *more: str) -> dict[str, Any]:
    assert cli(command(written, out, *more)) == 0
    result: dict[str, Any] = json.loads((out / "timing.json").read_text())
    return result


def test_all_rows_with_and_without_kept_features(written: tuple[Path, str], tmp_path: Path) -> None:
    result = timed(written, tmp_path, "--rounds", "3", "--samples", "7")
    assert (result["samples"], result["steps"], result["rounds"]) == (8, 2, 3)
    methods = written[1].split(",")
    assert [(row["label"], row["features"]) for row in result["rows"]] == [
        (method, kind) for method in methods for kind in ("cached", "recomputed")
    ]
    first = {row["features"]: row["step_s"] for row in result["rows"][:2]}
    for row in result["rows"]:
        assert row["step_s"] == sorted(row["steps_s"])[1]
        assert row["ratio"] == pytest.approx(row["step_s"] / first[row["features"]])
        assert row["to_samples_s"] == pytest.approx(2 * row["step_s"])
        assert row["samples_per_s"] == pytest.approx(4 / row["step_s"])
    table = (tmp_path / "timing.md").read_text().splitlines()
    assert len(table) == 2 + 4 + 2
    assert not (tmp_path / "runs").exists(), "nothing was trained"


def test_kept_features_are_not_encoded_again(
    written: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each row's store; anew at the warm-up and at each step of each round."""
    seen = []
    original = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, *given: seen.append(len(given[0])) or original(self, *given))
    timed(written, tmp_path, "--rounds", "2", "--samples", "4")
    standardized = 1 if "epalm" in written[1] else 0
    assert len(seen) <= 2 * (1 + standardized + 3)
    assert sum(size <= 4 for size in seen) >= 2 * 3


def test_a_slower_step_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that a busy machine does not move: it goes on by processor time, and by 0.2 s for each slow step."""
    original, steps = MaPLe.queries, []

    def slow(*given: Any) -> Any:
        steps.append(0.2)
        return original(*given)

    monkeypatch.setattr(MaPLe, "queries", slow)
    clock = SimpleNamespace(perf_counter=lambda: time.process_time() + sum(steps), process_time=time.process_time)
    monkeypatch.setattr(timing, "time", clock)
    data = support.save_data(tmp_path / "data", rows=8)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(blips.recipe(blips.save_blip(tmp_path / "blip", "t5"), data)))
    rows = timed((path, "head,maple"), tmp_path / "out", "--rounds", "1", "--samples", "4")["rows"]
    assert all(row["ratio"] == 1 for row in rows[:2])
    assert all(row["step_s"] > 0.2 and row["ratio"] > 1.5 for row in rows[2:])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rounds", "0"], "--rounds"),
        (["--samples", "0"], "--samples"),
        (["train.batch_tokens=200"], "train.batch_tokens"),
    ],
)
def test_what_cannot_be_timed(
    written: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli(command(written, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
