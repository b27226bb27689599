"""Captions of Flickr8k: which mapper at which place, which recipe sees best, and how its runs are best decoded.

    python studies/seeing.py train PART OUT DATA         trains and judges the rows of a part of `seeing.yaml`
    python studies/seeing.py decode PART ROW OUT         answers a row's runs in each way of `seeing.yaml` (`--ways`)
    python studies/seeing.py table PART OUT              prints what there is, with intervals

DATA is the folder that contains `flickr8k`. OUT holds the data, the runs and their results; what is there already is
not computed again. Two processes may share a part by `--seeds 1,2` or `--rows captions`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

import perceptune
from perceptune.utils.atomic_io import write_text
from planning import ROOT, STUDIES
from prepare import flickr_captions
from verdicts import t_interval

RECIPE = ROOT / "recipes" / "captions.yaml"
METRICS = ("CIDEr", "BLEU-4", "ROUGE-L")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "decode", "table"])
    parser.add_argument("words", nargs="+", help="as above")
    parser.add_argument("--seeds", help="some of the part's seeds")
    parser.add_argument("--rows", help="some of the part's rows")
    parser.add_argument("--ways", help="some of the ways of decoding")
    given = parser.parse_args()
    plan = yaml.safe_load((STUDIES / "seeing.yaml").read_text(encoding="utf-8"))
    part = plan["parts"][given.words[0]]
    seeds = [int(seed) for seed in given.seeds.split(",")] if given.seeds else part["seeds"]
    rows = {name: own for name, own in rows_of(part).items() if not given.rows or name in given.rows.split(",")}
    if given.command == "train":
        name, out, data = given.words[0], *map(Path, given.words[1:])
        files = write_rows(out, data)
        for seed in seeds:
            for row, overrides in rows.items():
                judge(out / name / f"{row}-{seed}", seed, part, overrides, files)
    elif given.command == "decode":
        name, row, out = given.words
        ways = {way: own for way, own in plan["decoding"].items() if not given.ways or way in given.ways.split(",")}
        for seed in seeds:
            decode(Path(out) / name / f"{row}-{seed}", part["split"], ways)
    else:
        for line in table(Path(given.words[1]) / given.words[0], rows, seeds):
            print(line)


def rows_of(part: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the overrides of each row; with a grid those of each of its places beside each row."""
    shared, rows = part.get("set", []), part["rows"].items()
    if "grid" not in part:
        return {name: _flat([shared, own]) for name, own in rows}
    return {f"{place}-{name}": _flat([shared, at, own]) for place, at in part["grid"].items() for name, own in rows}


def _flat(overrides: Sequence[Any]) -> list[str]:
    """Return overrides of which some are lists of others."""
    return [one for own in overrides for one in (_flat(own) if isinstance(own, list) else [own])]


def write_rows(out: Path, data: Path) -> dict[str, Path]:
    """Write the rows of Flickr8k, one a photo; return the files by name."""
    first, rest = [*flickr_captions(data)], [*flickr_captions(data, "train_rest.jsonl")]
    of = {split: [row for own, row in first if own == split] for split in ("train", "dev", "test")}
    named = {"1500": of["train"], "6000": [*of["train"], *(row for _, row in rest)], "validation": of["dev"],
             "test": of["test"]}  # fmt: skip
    files = {name: out / "data" / f"{name}.jsonl" for name in named}
    (out / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in named.items():
        if not files[name].is_file():
            write_text(files[name], "".join(json.dumps(row) + "\n" for row in rows))
    return files


def judge(run: Path, seed: int, part: Mapping[str, Any], overrides: Sequence[str], files: Mapping[str, Path]) -> None:
    """Train and evaluate a run, unless it is finished."""
    result = run / part["split"] / "results.json"
    if result.is_file():
        return
    data = {"train": files[str(part["photos"])], "validation": files["validation"], "test": files["test"]}
    own = [one.replace("$PART", str(run.parent)).replace("$SEED", str(seed)) for one in overrides]
    overrides = [*(f"task.{name}={path}" for name, path in data.items()), f"seed={seed}", *own]
    perceptune.train(RECIPE, run, overrides=overrides, resume=(run / "run.yaml").is_file())
    controls = bool(part.get("controls"))
    perceptune.evaluate(run, split=part["split"], control=controls, no_media=controls, into=run / part["split"])


def decode(run: Path, split: str, ways: Mapping[str, Sequence[str]]) -> None:
    """Answer a finished run in each way that it has no results of."""
    for name, overrides in ways.items():
        into = run / f"{split}-{name}"
        if not (into / "results.json").is_file():
            perceptune.evaluate(run, split=split, overrides=overrides, control=False, no_media=False, into=into)


def table(folder: Path, rows: Mapping[str, Any], seeds: Sequence[int]) -> Iterator[str]:
    """Yield a line for each row and way of decoding: mean over seeds with its t interval, x 100."""
    for row in rows:
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in seeds:
            for path in sorted((folder / f"{row}-{seed}").glob("*/results.json")):
                found.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
        for way, results in found.items():
            figures = [f"{metric} {interval([100 * result[metric] for result in results])}" for metric in METRICS]
            yield f"{row}, {way}: {len(results)} seeds, {results[0]['trained_share']:.2%}; " + ", ".join(figures)


def interval(values: Sequence[float]) -> str:
    """Return mean, deviation and 95 % t interval."""
    found = t_interval(values)
    if found is None:
        return f"{mean(values):.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f} ({found[0]:.1f} to {found[1]:.1f})"


if __name__ == "__main__":
    main()
