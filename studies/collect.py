"""What a part leaves: the tables of its commands."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perceptune.data.bootstrap import bootstrap_corpus
from perceptune.data.metrics import caption
from perceptune.evaluation.results import read_stored_predictions
from perceptune.tools.compare.plan import folder_name, setting_name
from perceptune.tools.report.gather import number
from planning import ROOT, option

# What is kept of a row of a comparison.
KEPT = (
    "label", "method", "trained", "share", "samples_per_second", "spread", "interval", "difference",
    "difference_interval", "setting", "validation", "by_seed", "means", "test_samples", "train_seconds",
)  # fmt: skip


def tables_of(commands: Iterable[Sequence[str]]) -> list[dict[str, Any]]:
    """What the commands of a part found: comparisons, their timings, what scripts wrote, and evaluations as one table.

    Raises `UserError` or `OSError` if something is missing.
    """
    tables: dict[str, dict[str, Any]] = {}
    for words in commands:
        out = option(words, "--out")
        if out is None:
            continue
        folder = ROOT / out
        if words[0] == "python":
            found = _read(folder / "table.json")
        elif words[1] == "eval":
            found = {"name": Path(out).parent.name, "kind": "eval", "rows": [_evaluated(folder)]}
        elif words[1] == "compare" and "--timing" in words:
            found = {"name": Path(out).name, "kind": "timing", **_timed(folder)}
        elif words[1] == "compare":
            found = _compared(folder)
        else:
            continue
        earlier = tables.setdefault(found["name"], found)
        if earlier is not found and found["kind"] == "eval":
            earlier["rows"] += found["rows"]
        else:
            tables[found["name"]] = found
    return list(tables.values())


def _compared(folder: Path) -> dict[str, Any]:
    result = _read(folder / "compare.json")
    metric, rows = result["metric"], []
    for row in result["rows"]:
        runs = folder / "runs" / folder_name(row["label"])
        times = [sum(_read(path).values()) for path in sorted(runs.glob("*/seed-*/times.json"))]
        setting = folder_name(setting_name(row["setting"]))
        tested = [runs / setting / f"seed-{seed}" for seed in result["seeds"]]
        rows.append({
            metric: row[metric], **{key: row[key] for key in KEPT}, "bleu_interval": bleu_interval(tested),
            "run_seconds": [round(t) for t in times],
        })  # fmt: skip
    kept = ("metric", "test_on", "test_samples", "select_on", "settings", "seeds", "train_samples", "batch_size")
    return {"name": folder.name, "kind": "compare", **{key: result[key] for key in (*kept, "prior")}, "rows": rows}


def bleu_interval(runs: Sequence[Path]) -> list[float] | None:
    """Of the mean BLEU-4 of runs on the same photos, which are resampled whole; None where no captions were judged."""
    parts = []
    for run in runs:
        rows = read_stored_predictions(run)
        if "CIDEr" not in rows[0]["scores"]:
            return None
        scored = caption.score([row["answer"] for row in rows], [row["targets"] for row in rows], caption.Options())
        parts.append(scored.corpus["BLEU-4"])
    width = parts[0].statistics.shape[1]
    return list(bootstrap_corpus(
        np.concatenate([part.statistics for part in parts], axis=1),
        lambda sums: sum(p.value(sums[..., i * width : (i + 1) * width]) for i, p in enumerate(parts)) / len(parts),
        groups=[str(sorted(row["media"].items())) for row in rows],
    ))  # fmt: skip


def _evaluated(folder: Path) -> dict[str, Any]:
    """The values of an evaluation with intervals, its controls, and its other data sets."""
    result = _read(folder / "results.json")
    values = {key: value for key, value in _numbers(result).items() if key not in ("seed", "max_new_tokens")}
    others = {
        name: {"metric": one["metric"], "samples": one["evaluated_samples"], **_numbers(one), "gaps": one["gaps"]}
        for name, one in result.get("others", {}).items()
    }
    if (interval := bleu_interval([folder])) is not None:
        values["BLEU-4_interval"] = interval
    # How a metric is defined may hold values that JSON has no word for.
    definition = json.loads(json.dumps(result.get("definition"), default=str))
    return {"label": folder.name, "metrics": result["metrics"], "samples": result["evaluated_samples"],
            "split": result["split"], "definition": definition, "decoding": result["decoding"], "values": values,
            "others": others}  # fmt: skip


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Values that are numbers, and intervals."""
    return {
        key: value for key, value in result.items()
        if number(value) is not None or (key.endswith("_interval") and isinstance(value, list))
    }  # fmt: skip


def _timed(folder: Path) -> dict[str, Any]:
    result = _read(folder / "timing.json")
    rows = [{key: value for key, value in row.items() if key != "steps_s"} for row in result["rows"]]
    return {"samples": result["samples"], "rounds": result["rounds"], "batch_size": result["batch_size"], "rows": rows}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
