"""The rule of the verdicts: what a result must show before a reading may say *holds* or *does not hold*."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import planning
import verdicts
import write

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "studies"
PLAN = planning.load_plan()
QUESTIONS = "perceptune compare studies/epalm/questions.yaml --out {runs}/questions --methods epalm-pt,epalm-lin"


def row(label: str, values: Sequence[float], rates: Mapping[float, float] | None = None, **more: Any) -> dict[str, Any]:
    """A row of a comparison: the score of each seed, and the validation score of each rate."""
    chosen = max(rates, key=lambda rate: rates[rate]) if rates else None
    mean = sum(values) / len(values)
    return {
        "label": label, "accuracy": mean, "by_seed": {str(seed): value for seed, value in enumerate(values)},
        "interval": [mean - 0.01, mean + 0.01], "difference_interval": None,
        "setting": {} if chosen is None else {"train.lr": chosen},
        "validation": {f"train.lr={rate}": value for rate, value in (rates or {}).items()}, **more,
    }  # fmt: skip


INSIDE = {1e-5: 0.1, 8e-5: 0.3, 1e-2: 0.2}
FIRST = row("epalm-lin", [0.10, 0.11, 0.12], INSIDE, difference_interval=[0.0, 0.0])
AHEAD = row("epalm-pt", [0.40, 0.42, 0.41], INSIDE, difference_interval=[0.28, 0.32])


def result(*rows: Mapping[str, Any], command: str = QUESTIONS) -> dict[str, Any]:
    table = {"name": "questions", "kind": "compare", "metric": "accuracy", "rows": list(rows)}
    return {"part": "questions", "commands": [command], "tables": [table]}


def against(*rows: Mapping[str, Any], pair: tuple[str, str] = ("epalm-pt", "epalm-lin")) -> str:
    return "; ".join(verdicts.objections(result(*rows), *pair))


def test_three_seeds_both_intervals_and_a_rate_inside_its_grid_carry_a_verdict() -> None:
    assert against(FIRST, AHEAD) == ""
    found = verdicts.difference(result(FIRST, AHEAD), "epalm-pt", "epalm-lin")
    assert found.value == pytest.approx(0.30)
    assert found.seeds == (pytest.approx(0.30 - 4.3027 * 0.01 / 3**0.5, abs=1e-5), pytest.approx(0.3248, abs=1e-4))
    assert found.media == (0.28, 0.32)
    turned = verdicts.difference(
        result(AHEAD, {**FIRST, "difference_interval": [-0.32, -0.28]}), "epalm-pt", "epalm-lin"
    )
    assert turned.media == (0.28, 0.32)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"by_seed": {"0": 0.40, "1": 0.42}}, "2 seeds are fewer than 3"),
        ({"by_seed": {"0": 0.80, "1": 0.30, "2": 0.13}}, "over seeds the difference may be 0"),
        ({"difference_interval": [-0.01, 0.50]}, "over media the difference may be 0"),
        ({"setting": {"train.lr": 1e-2}}, "`epalm-pt` is best at the highest of its 3 settings"),
        ({"setting": {"train.lr": 1e-5}}, "`epalm-pt` is best at the lowest of its 3 settings"),
        ({"setting": {}, "validation": {}}, "`epalm-pt` had one setting"),
    ],
)
def test_each_condition_is_named_that_is_not_met(changed: dict[str, Any], said: str) -> None:
    assert said in against(FIRST, {**AHEAD, **changed})
    assert "may be 0" in against(AHEAD, FIRST, pair=("epalm-lin", "epalm-pt")), "the order is the other way round"


def test_rows_that_are_not_first_are_told_apart_by_their_own_intervals() -> None:
    other = row("epalm", [0.1, 0.2, 0.3], INSIDE)
    assert against(other, AHEAD, FIRST) == ""
    wide = {**AHEAD, "interval": [0.05, 0.70]}
    assert "over media the difference may be 0" in against(other, wide, FIRST)


@pytest.mark.parametrize("seeds", range(2, 11))
def test_the_quantiles_are_students(seeds: int) -> None:
    """Between plus and minus the quantile lie 95 % of the density."""
    freedom, edge = seeds - 1, verdicts.QUANTILES[seeds - 1]
    angle = np.linspace(0, np.arctan(edge / freedom**0.5), 100_001)  # t = sqrt(freedom) tan(angle)
    whole = np.linspace(0, np.pi / 2, 100_001)
    inside, all_of_it = (np.trapezoid(np.cos(a) ** (freedom - 1), a) for a in (angle, whole))
    assert inside / all_of_it == pytest.approx(0.95, abs=2e-6)


@pytest.mark.parametrize(
    ("recipe", "pair", "factors"),
    [
        ("epalm/questions", ("epalm-pt", "epalm-lin"), {"prompt"}),
        ("epalm/questions", ("epalm", "epalm-pt"), {"connections"}),
        ("epalm/questions", ("epalm-lin", "limber"), {"levels", "layers"}),
        ("epalm/questions", ("epalm", "promptfuse"), {"levels", "layers", "place of the prompt"}),
        ("epalm/questions", ("magma", "limber"), {"adapters"}),
        ("epalm/questions", ("magma", "magma-official"), {"slot_mask"}),
        ("epalm/questions", ("epalm-ada", "full"), {"levels", "layers", "adapters", "unfreeze", "train", "eval"}),
        ("epalm/captions", ("epalm", "epalm-gemma"), {"lm"}),
        ("epalm/captions", ("magma-112", "magma-all"), {"tokens"}),
        ("epalm/levels", ("late-1", "input-1"), {"layers", "place of the prompt"}),
        ("epalm/levels", ("late-6", "all-6"), {"layers", "place of the prompt"}),
        ("epalm/levels", ("ada-late-1", "ada-all-1"), {"layers"}),
        ("epalm/levels", ("late-6", "late-1"), {"levels"}),
        ("epalm/prompts", ("plain-10", "plain-40"), {"prompt"}),
        ("epalm/prompts", ("plain-10", "input-10"), {"place of the prompt"}),
        ("petal/questions", ("petal", "V4"), {"dma"}),
        ("petal/questions", ("petal", "lora"), {"method"}),
    ],
)  # fmt: skip
def test_what_varies_between_two_rows_is_counted(recipe: str, pair: tuple[str, str], factors: set[str]) -> None:
    command = f"perceptune compare studies/{recipe}.yaml --out {{runs}}/questions"
    assert verdicts.varied(result(command=command), *pair) == factors


def test_a_pair_that_differs_in_two_things_carries_no_verdict() -> None:
    rows = [{**FIRST, "label": "limber"}, {**AHEAD, "label": "epalm-lin"}]
    assert against(*rows, pair=("epalm-lin", "limber")) == "they differ in layers and levels"


READINGS = verdicts.load_readings(STUDIES / "readings.yaml", PLAN)


@pytest.mark.parametrize("part", READINGS)
def test_no_reading_says_more_than_its_result_carries(part: str) -> None:
    assert verdicts.unfounded(STUDIES / "results" / f"{part}.json", READINGS[part]) == []


def test_a_verdict_without_rows_or_with_unknown_ones_is_unfounded() -> None:
    path = STUDIES / "results" / "questions-epalm.json"
    assert verdicts.unfounded(path, {"verdict": "holds", "text": "It does."}) == ["names no two `rows`"]
    for verdict in ("cannot tell", "measured"):
        assert verdicts.unfounded(path, {"verdict": verdict, "text": "28.3."}) == []
    found = verdicts.unfounded(path, {"verdict": "holds", "text": "", "rows": ["epalm-pt", "mgma"]})
    assert found == ["no comparison has both `epalm-pt` and `mgma`"]


@pytest.mark.parametrize("page", ["README.md", "docs/findings.md", "docs/petal_baselines.md"])
def test_a_claim_of_a_page_rests_on_two_parts_of_that_verdict(page: str) -> None:
    """A paragraph or row that says **holds** or **does not hold** names two parts whose readings say the same."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for passage in re.split(r"\n(?=[|\n-])", text):
        for verdict in re.findall(r"\*\*(holds|does not hold)\*\*", passage):
            named = re.findall(r"`([\w-]+)`", passage)
            agreeing = [name for name in named if name in READINGS and READINGS[name]["verdict"] == verdict]
            assert len(set(agreeing)) >= 2, passage


def test_a_setting_at_the_edge_of_its_grid_is_said_at_the_row() -> None:
    assert verdicts.edge({**AHEAD, "setting": {"train.lr": 1e-2}}) == "highest"
    page = write.pages(STUDIES)[STUDIES / "README.md"]
    line = next(line for line in page.splitlines() if line.startswith("| `promptfuse`") and "accuracy" not in line)
    assert "(highest of 3)" in line
    assert "(lowest of 2)" in page


def test_readings_are_of_parts_and_verdicts_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "readings.yaml"
    path.write_text(yaml.safe_dump({"flagship": {"verdict": "measured", "text": "28.3."}}))
    assert verdicts.load_readings(path, PLAN)["flagship"]["text"] == "28.3."
    for given, said in [
        ({"flagship": {"verdict": "perhaps", "text": ""}}, "does not hold, cannot tell, measured"),
        ({"flagship": {"verdict": "holds", "text": "", "row": []}}, "a `text`, and a `verdict`"),
        ({"flag": {"verdict": "holds", "text": ""}}, "no part `flag`"),
    ]:  # fmt: skip
        path.write_text(yaml.safe_dump(given))
        with pytest.raises(ValueError, match=said):
            verdicts.load_readings(path, PLAN)
