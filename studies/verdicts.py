"""Applies the rule of the verdicts: what a result must show before a reading may say *holds* or *does not hold*.

python studies/verdicts.py    prints every such verdict with what speaks against it; exit status 1 if something does

A verdict names two rows of a comparison, the one that is ahead first. Four conditions make it:
- over three seeds or more the 95 % t interval of the paired differences excludes 0;
- the 95 % bootstrap interval of their mean over test media excludes 0;
- the best setting of either row lies inside its grid;
- nothing varies between the two rows but one thing.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import yaml

import planning
from perceptune.config.recipe import load_recipe
from perceptune.models.backbone import method_options
from perceptune.tools.compare.plan import _variants
from planning import ROOT, STUDIES, Plan

VERDICTS = ("holds", "does not hold", "cannot tell", "measured")
FOUNDED = VERDICTS[:2]  # those that the rule must allow
SEEDS = 3  # the fewest that tell a difference from chance
# Degrees of freedom -> the 97.5 % quantile of Student's t.
QUANTILES = {
    1: 12.70620, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 6: 2.44691, 7: 2.36462, 8: 2.30600, 9: 2.26216,
}  # fmt: skip
SECTIONS = ("lm", "encoders", "text", "train", "eval", "decode")  # of a recipe, beside `method`
Row = Mapping[str, Any]
Reading = Mapping[str, Any]


class Difference(NamedTuple):
    """How far one row is ahead of another, with the 95 % intervals over seeds (None for one) and over test media."""

    value: float
    seeds: tuple[float, float] | None
    media: tuple[float, float]


def main() -> int:
    readings = load_readings(STUDIES / "readings.yaml", planning.load_plan())
    failed = False
    for part, reading in readings.items():
        if reading["verdict"] in FOUNDED:
            against = unfounded(STUDIES / "results" / f"{part}.json", reading)
            failed |= bool(against)
            print(f"{part}: {reading['verdict']}: {'; '.join(against) or 'carried by the result'}")
    return int(failed)


def load_readings(path: Path, plan: Plan) -> dict[str, Reading]:
    """Return part -> its `verdict`, `text` and, for a verdict that the rule must allow, two `rows`.

    Raises `ValueError` for an unknown part, verdict or key.
    """
    readings: dict[str, Reading] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    names = {part.name for part in plan.parts}
    for name, reading in readings.items():
        if name not in names:
            raise ValueError(f"{path.name}: there is no part `{name}`")
        if set(reading) - {"rows"} != {"verdict", "text"} or reading["verdict"] not in VERDICTS:
            raise ValueError(f"{path.name}: `{name}` has a `text`, and a `verdict` of {', '.join(VERDICTS)}")
    return readings


def unfounded(path: Path, reading: Reading) -> list[str]:
    """Return what speaks against a reading's verdict; nothing for one that claims nothing."""
    if reading["verdict"] not in FOUNDED:
        return []
    rows = reading.get("rows", [])
    if len(rows) != 2:
        return ["names no two `rows`"]
    return objections(json.loads(path.read_text(encoding="utf-8")), *rows)


def objections(result: Mapping[str, Any], ahead: str, behind: str) -> list[str]:
    """Return which of the four conditions are not met for one row of a result ahead of another."""
    if (found_in := _comparison(result, ahead, behind)) is None:
        return [f"no comparison has both `{ahead}` and `{behind}`"]
    _, first, second = found_in
    found, against = difference(result, ahead, behind), []
    seeds = len(_differences(first, second))
    if seeds < SEEDS:
        against.append(f"{seeds} seeds are fewer than {SEEDS}")
    elif found.seeds is not None and found.seeds[0] <= 0:
        against.append(f"over seeds the difference may be 0 ({_span(found.seeds)})")
    if found.media[0] <= 0:
        against.append(f"over media the difference may be 0 ({_span(found.media)})")
    for row in (first, second):
        if len(row["validation"] or {}) < 2:
            against.append(f"`{row['label']}` had one setting")
        elif end := edge(row):
            against.append(f"`{row['label']}` is best at the {end} of its {len(row['validation'])} settings")
    if len(factors := varied(result, ahead, behind)) > 1:
        against.append(f"they differ in {' and '.join(sorted(factors))}")
    return against


def difference(result: Mapping[str, Any], ahead: str, behind: str) -> Difference:
    """Return how far one row is ahead of another of the same comparison."""
    table, first, second = _comparison(result, ahead, behind)
    values = _differences(first, second)
    return Difference(mean(values), t_interval(values), _over_media(table, first, second))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of a few values by Student's t; None for a single one."""
    if len(values) < 2:
        return None
    reach = QUANTILES[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    return mean(values) - reach, mean(values) + reach


def edge(row: Row) -> str | None:
    """Return `lowest` or `highest` if the chosen setting ends its grid, so that a better one may lie beyond."""
    grid: dict[str, set[float]] = {}
    for setting in row["validation"] or {}:
        for pair in setting.split(", "):
            key, _, value = pair.partition("=")
            if _is_number(value):
                grid.setdefault(key, set()).add(float(value))
    for key, values in grid.items():
        if len(values) > 1 and float(row["setting"][key]) in (min(values), max(values)):
            return "lowest" if float(row["setting"][key]) == min(values) else "highest"
    return None


def varied(result: Mapping[str, Any], ahead: str, behind: str) -> set[str]:
    """Return what the recipes of two rows differ in, learning rates aside."""
    compared = next(words for words in map(str.split, result["commands"]) if words[1] == "compare")
    recipe = load_recipe(ROOT / compared[2])
    (_, first), (_, second) = _variants(recipe, [ahead, behind], [], False)
    options = [method_options(one) for one in (first, second)]
    one, other = (_factors(given.model_dump()) for given in options)
    keys = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    if "prompt" not in one and type(options[0]) is not type(options[1]):
        keys = {"method"}  # of the Q-Former: they share no parts
    if None in (one.get("prompt"), other.get("prompt")):
        keys.discard("place of the prompt")  # there is none to place
    if "levels" in keys:
        keys.discard("connections")  # there is one for each level, or one for all
    return keys | {name for name in SECTIONS if getattr(first, name) != getattr(second, name)}


def _factors(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a method as what a reader would call one thing each, without those that have no effect."""
    if "prompt_at" not in options:
        return options
    layers = {key: options[key] for key in ("first", "last", "refresh", "inject")}
    prompt = {key: options[key] for key in ("prompt", "prompt_tokens", "prompt_std", "order")}
    adapters = {key: value for key, value in options.items() if key.startswith("adapter")}
    merged = {*layers, *prompt, *adapters, "levels", "n_levels", "prompt_at", "shared_connector"}
    place = options["prompt_at"]
    return {
        **{key: value for key, value in options.items() if key not in merged}, "layers": layers,
        "levels": options["levels"] or options["n_levels"], "connections": options["shared_connector"],
        "adapters": adapters if options["adapters"] else None,
        "prompt": None if options["prompt"] == "none" else prompt,
        # In front of the first injected layer it moves with the layers.
        "place of the prompt": (place, layers["first"]) if place == "first_injected" else place,
    }  # fmt: skip


def _comparison(result: Mapping[str, Any], *labels: str) -> Any:
    """Return the first comparison that has all of the rows, and these, or None."""
    for table in result["tables"]:
        rows = {row["label"]: row for row in table["rows"]}
        if table["kind"] == "compare" and set(labels) <= rows.keys():
            return table, *(rows[label] for label in labels)
    return None


def _differences(first: Row, second: Row) -> list[float]:
    return [value - second["by_seed"][seed] for seed, value in first["by_seed"].items() if seed in second["by_seed"]]


def _over_media(table: Mapping[str, Any], first: Row, second: Row) -> tuple[float, float]:
    """Return the interval of the paired difference; if only those of the rows were kept, the wider one between them."""
    reference = table["rows"][0]["label"]
    if second["label"] == reference:
        low, high = first["difference_interval"]
        return low, high
    if first["label"] == reference:
        low, high = second["difference_interval"]
        return -high, -low
    (low, high), (other_low, other_high) = first["interval"], second["interval"]
    return low - other_high, high - other_low


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


if __name__ == "__main__":
    sys.exit(main())
