"""What `perceptune bench` does with its options."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from perceptune.config.schema import DType
from perceptune.errors import UserError, nearest
from perceptune.tools.bench.compare import PARTS, compare
from perceptune.tools.bench.default import compare_paths, compare_precisions
from perceptune.tools.bench.measure import machine, peak_memory_mb
from perceptune.tools.bench.plan import Assumptions, measured_costs, plan_rows
from perceptune.tools.bench.qformer import qformer_rows
from perceptune.tools.bench.scaling import data_size_row, depth_rows
from perceptune.tools.bench.shapes import Models, Setting, published

MODELS = ("default",)
PRECISIONS = get_args(DType)


@dataclass(frozen=True)
class BenchOptions:
    """The command line's options."""

    shapes: str = "opt-125m+vit-b16"
    models: str | None = None
    precision: Sequence[str] = ()
    qformer: Sequence[str] | None = None
    rounds: int = 5
    threads: int | None = None
    only: Sequence[str] = ()
    row: str | None = None
    plain: bool = False
    memory: bool = False
    depths: Sequence[int] = ()
    data_sizes: Sequence[int] = ()
    plan: bool = False
    assumptions: Assumptions = field(default_factory=Assumptions)


def run_bench(options: BenchOptions) -> dict[str, Any]:
    """`{"ratios": ..., "rows": ..., "machine": ...}`. Raises `UserError` for names and numbers that make no sense."""
    _check(options)
    with _threads(options.threads):
        result = _measured(options)
        return {"ratios": result["ratios"], "rows": result["rows"], "machine": machine()}


def _measured(options: BenchOptions) -> dict[str, Any]:
    if options.models is not None and options.precision:
        return compare_precisions(options.precision, rounds=options.rounds)
    if options.models is not None:
        return compare_paths(rounds=options.rounds, only_plain=options.plain)
    if options.qformer is not None:
        return qformer_rows(options.qformer, options.rounds)
    models = Models(options.shapes, Setting())
    if options.plan:
        return {"ratios": {}, "rows": plan_rows(measured_costs(models, options.rounds), options.assumptions)}
    further = bool(options.depths or options.data_sizes)
    parts = options.only or (() if further else PARTS)
    result = compare(models, parts, options.rounds, plain=options.plain, row=options.row)
    if options.row is not None:
        result["rows"][0]["peak_memory_mb"] = peak_memory_mb()
    elif options.memory:
        _add_memory(result["rows"], options)
    if options.depths:
        result["rows"] += depth_rows(options.shapes, Setting(), options.depths, options.rounds)
    if len(options.data_sizes) == 1:
        result["rows"].append(data_size_row(options.shapes, Setting(), options.data_sizes[0], options.rounds))
    for size in options.data_sizes if len(options.data_sizes) > 1 else ():
        result["rows"] += _in_fresh_process(options, ["--data-sizes", str(size), "--rounds", str(options.rounds)])
    return result


def _check(options: BenchOptions) -> None:
    published(options.shapes)
    if options.models is not None and options.models not in MODELS:
        raise UserError(f"no models `{options.models}`{nearest(options.models, MODELS)}")
    if options.precision and options.models is None:
        raise UserError("--precision compares steps of real models: give --models default, too")
    for name in options.precision:
        if name not in PRECISIONS:
            raise UserError(f"--precision: no dtype `{name}`{nearest(name, PRECISIONS)}")
    if len(set(options.precision)) != len(options.precision):
        raise UserError(f"--precision: `{','.join(options.precision)}` names one twice")
    for part in options.only:
        if part not in PARTS:
            raise UserError(f"--only: no part `{part}`{nearest(part, PARTS)}")
    numbers = {"--rounds": options.rounds, "--threads": options.threads or 1}
    numbers |= {f"--depths {depth}": depth for depth in options.depths}
    numbers |= {f"--data-sizes {size}": size for size in options.data_sizes}
    numbers |= {f"--{name.replace('_', '-')}": value for name, value in vars(options.assumptions).items()}
    for name, value in numbers.items():
        if value <= 0:
            raise UserError(f"{name}: give a number above 0 (given: {value})")


def _add_memory(rows: list[dict[str, Any]], options: BenchOptions) -> None:
    """Peak memory of each row alone, from a process of its own."""
    for row in rows:
        if row["kind"] in ("train", "generate"):
            flags = ["--row", row["name"], "--rounds", "1", *(["--plain"] if options.plain else [])]
            row["peak_memory_mb"] = _in_fresh_process(options, flags)[0]["peak_memory_mb"]


def _in_fresh_process(options: BenchOptions, flags: Sequence[str]) -> list[dict[str, Any]]:
    threads = ["--threads", str(torch.get_num_threads())]
    command = [sys.executable, "-m", "perceptune", "bench", "--shapes", options.shapes, "--json", *threads, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"the process that measures `{' '.join(flags)}` ended with {done.returncode}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
