"""What a training step and an answer cost: ours, the method by the letter, prompt tuning, the machine's limit.

Run from the checkout as `python -m benchmarks`; models of published shapes with random weights are built in memory.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.compare import PARTS, compare
from benchmarks.default import compare_paths, compare_precisions
from benchmarks.plan import ASSUMED, Assumptions, measured_costs, plan_rows
from benchmarks.processes import peak_memory_mb, rows_of_a_fresh_process
from benchmarks.qformer import qformer_rows
from benchmarks.report import markdown
from benchmarks.scaling import data_size_row, depth_rows
from benchmarks.shapes import Models, Setting, published
from perceptune.config.schema import DType
from perceptune.errors import UserError, nearest
from perceptune.utils.timing import machine

MODELS = ("default",)
PRECISIONS = get_args(DType)


def parser() -> argparse.ArgumentParser:
    """Every option."""
    top = argparse.ArgumentParser("python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    add = top.add_argument
    add("--shapes", default="opt-125m+vit-b16", help="random weights of published shapes (default: %(default)s)")
    add("--models", help="`default`: the embedded models at the demo's recipe, fast against plain path")
    add("--precision", type=_words, default=[], metavar="float32,auto",
        help="with --models: steps in these dtypes, in turns, and their ratios to the first")  # fmt: skip
    add("--qformer", nargs="*", metavar="METHOD",
        help="steps of methods on the published Q-Former, ratios to the first")  # fmt: skip
    add("--rounds", type=int, default=5, help="measurements a row, in turns (default: %(default)s)")
    add("--threads", type=int, help="number of threads (default: torch's own choice)")
    add("--only", nargs="+", default=[], metavar="PART", help=f"parts to measure: {', '.join(PARTS)}")
    add("--row", help="measure one row alone, with its peak memory")
    add("--plain", action="store_true", help="also measure our slow path; with --models, the slow path alone")
    add("--memory", action="store_true", help="also measure peak memory, each row in a process of its own")
    add("--depths", type=_integers, default=[], metavar="4,8,12", help="measure the cost at these depths of the LM")
    add("--data-sizes", type=_integers, default=[], metavar="1000,10000",
        help="measure the cost with these numbers of cached samples")  # fmt: skip
    add("--plan", action="store_true", help="estimate the cost of many images from what is measured here")
    assumed = top.add_argument_group("assumptions of --plan")
    for name, value in vars(Assumptions()).items():
        flag, meaning = f"--{name.replace('_', '-')}", f"{ASSUMED[name]} (default: %(default)s)"
        assumed.add_argument(flag, type=type(value), default=value, help=meaning)
    add("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    add("--json", action="store_true")
    return top


def run(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 2 for names and numbers that make no sense."""
    options = parser().parse_args(arguments)
    threads = torch.get_num_threads()
    try:
        _check(options)
        torch.set_num_threads(options.threads or threads)
        result = {**_measured(options), "machine": machine()}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    if options.markdown:
        options.markdown.write_text(markdown(result), encoding="utf-8")
    print(json.dumps(result, indent=2) if options.json else markdown(result))
    return 0


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """`ratios` and `rows`."""
    rounds, setting = options.rounds, Setting()
    if options.models is not None and options.precision:
        return compare_precisions(options.precision, rounds=rounds)
    if options.models is not None:
        return compare_paths(rounds=rounds, only_plain=options.plain)
    if options.qformer is not None:
        return qformer_rows(options.qformer, rounds)
    models = Models(options.shapes, setting)
    if options.plan:
        return {"ratios": {}, "rows": plan_rows(measured_costs(models, rounds), _assumptions(options))}
    parts = options.only or (() if options.depths or options.data_sizes else PARTS)
    result = compare(models, parts, rounds, plain=options.plain, row=options.row)
    if options.row is not None:
        result["rows"][0]["peak_memory_mb"] = peak_memory_mb()
    elif options.memory:
        for row in result["rows"]:
            if row["kind"] in ("train", "generate"):
                flags = ["--row", row["name"], "--rounds", "1", *(["--plain"] if options.plain else [])]
                row["peak_memory_mb"] = rows_of_a_fresh_process(options.shapes, flags)[0]["peak_memory_mb"]
    if options.depths:
        result["rows"] += depth_rows(options.shapes, setting, options.depths, rounds)
    if len(options.data_sizes) == 1:
        result["rows"].append(data_size_row(options.shapes, setting, options.data_sizes[0], rounds))
    for size in options.data_sizes if len(options.data_sizes) > 1 else ():
        flags = ["--data-sizes", str(size), "--rounds", str(rounds)]
        result["rows"] += rows_of_a_fresh_process(options.shapes, flags)
    return result


def _check(options: argparse.Namespace) -> None:
    published(options.shapes)
    if options.precision and options.models is None:
        raise UserError("--precision compares steps of real models: give --models default, too")
    if len(set(options.precision)) != len(options.precision):
        raise UserError(f"--precision: `{','.join(options.precision)}` names one twice")
    models = [] if options.models is None else [options.models]
    named = (("--models: no models", models, MODELS), ("--precision: no dtype", options.precision, PRECISIONS),
             ("--only: no part", options.only, PARTS))  # fmt: skip
    for what, given, choices in named:
        for name in given:
            if name not in choices:
                raise UserError(f"{what} `{name}`{nearest(name, choices)}")
    numbers = {"--rounds": options.rounds, "--threads": 1 if options.threads is None else options.threads}
    numbers |= {f"--depths {depth}": depth for depth in options.depths}
    numbers |= {f"--data-sizes {size}": size for size in options.data_sizes}
    numbers |= {f"--{name.replace('_', '-')}": value for name, value in vars(_assumptions(options)).items()}
    for name, value in numbers.items():
        if value <= 0:
            raise UserError(f"{name}: give a number above 0 (given: {value})")


def _assumptions(options: argparse.Namespace) -> Assumptions:
    return Assumptions(**{name: getattr(options, name) for name in ASSUMED})


def _words(text: str) -> list[str]:
    return text.split(",")


def _integers(text: str) -> list[int]:
    return [int(part.replace("_", "")) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(run())
