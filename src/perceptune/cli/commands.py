"""One function per command: options in, exit code out."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perceptune.cli.blip import build_instructblip as build_instructblip
from perceptune.cli.blip import export_instructblip as export_instructblip
from perceptune.cli.blip import show_attention as show_attention
from perceptune.cli.compare import compare as compare
from perceptune.cli.data import data as data
from perceptune.cli.evaluate import answer as answer
from perceptune.cli.evaluate import eval as eval
from perceptune.cli.evaluate import predict as predict
from perceptune.cli.evaluate import print_scores
from perceptune.cli.imports import import_encoder as import_encoder
from perceptune.cli.imports import import_epalm as import_epalm
from perceptune.cli.report import report as report
from perceptune.cli.score import score as score
from perceptune.cli.serve import serve as serve
from perceptune.cli.share import export as export
from perceptune.cli.share import push as push
from perceptune.cli.share import verify as verify
from perceptune.errors import UserError
from perceptune.utils.run_log import is_main_process

out = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())


def demo(options: argparse.Namespace) -> int:
    from perceptune.tools.demo import run_demo

    results = run_demo(Path(options.run), smoke=options.smoke, say=out.print, print_scores=print_scores)
    if results["gap_open_interval"][0] <= 0:
        out.print("this run answers open questions no better than with shuffled images: something is broken")
        return 1
    return 0


def train(options: argparse.Namespace) -> int:
    from perceptune.training.trainer import train as run_training

    recipe, overrides = _training_recipe(options)
    result = run_training(
        recipe, options.run, overrides=overrides, resume=options.resume, trust=options.trust,
        join_timeout=options.join_timeout,
    )  # fmt: skip
    if result.interrupted:
        out.print(f"stopped after step {result.steps}, everything is saved; go on with:\n"
                  f"  perceptune train --resume --run {result.run}")  # fmt: skip
        return 130
    best = "" if result.best is None else f", best {result.best:.4f}"
    out.print(f"trained {result.steps} steps ({result.samples} samples) in {result.seconds:.0f} s{best}: {result.run}")
    out.print(f"next:  perceptune eval {result.run}")
    return 0


def show(options: argparse.Namespace) -> int:
    from perceptune.tools.summary import describe, recipe_of, stored_precision

    shown = describe(recipe_of(options.source))
    if stored := stored_precision(options.source):
        shown["precision"] = stored
    if options.json:
        print(json.dumps(shown, indent=2))
        return 0
    table = Table("part", "what", "parameters", "", title=f"{shown['recipe']}: {shown['method']}", title_justify="left")
    for part in shown["parts"]:
        table.add_row(part["name"], part["what"], f"{part['parameters']:,}", "trained" if part["trained"] else "frozen")
    out.print(table)
    out.print(f"trained {shown['trainable']:,} of {shown['total']:,} = {100 * shown['share']:.3f} %")
    first, layers = shown["first_layer"], shown["lm_layers"]
    out.print(
        f"layers below {first} of {layers} see bare text: run without gradient, once per distinct text"
        if first else f"all {layers} layers run with gradient: media or trained parts enter from the first one on"
    )  # fmt: skip
    dtypes = dict(shown["precision"])
    reason = dtypes.pop("reason", "")
    out.print(", ".join(f"{key}: {value}" for key, value in dtypes.items()) + (f" ({reason})" if reason else ""))
    places = Table("layer", "where", "what", title="touched places", title_justify="left")
    for site in shown["sites"]:
        places.add_row(str(site["layer"]), site["where"], site["what"])
    out.print(places)
    return 0


def list(options: argparse.Namespace) -> int:
    from perceptune.tools.list_components import entries

    found = entries(options.kind)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for entry in found:
        out.print(f"{entry['name']:<22} {entry['description']}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    from perceptune.tools.doctor import examine

    if options.gpu:
        return _check_gpu(options)
    checks = examine(options.recipe)
    if options.json:
        print(json.dumps(checks, indent=2))
    else:
        for check in checks:
            mark = {"ok": "ok  ", "note": "note", "problem": "!!  "}[check["state"]]
            out.print(f"{mark} {check['name']:<14} {check['found']}")
    return 1 if any(check["state"] == "problem" for check in checks) else 0


def _check_gpu(options: argparse.Namespace) -> int:
    from perceptune.tools.gpu_check import check_gpu

    if options.recipe:
        raise UserError("doctor --gpu makes models of its own: leave the recipe out")
    checks = check_gpu(Path(options.out), say=(lambda _: None) if options.json else out.print)
    print(json.dumps(checks, indent=2) if options.json else f"report: {options.out}")
    return 1 if any(check["state"] == "problem" for check in checks) else 0


def assets(options: argparse.Namespace) -> int:
    from perceptune.utils.downloads import ASSETS, fetch, present

    if options.list:
        for name, asset in ASSETS.items():
            out.print(f"{name:<24} {asset.what}\n{'':<24} {present(name) or 'not fetched'}")
        return 0
    for name, path in fetch(options.names or tuple(ASSETS)).items():
        out.print(f"{name:<24} {path}")
    return 0


def features(options: argparse.Namespace) -> int:
    from perceptune.config.recipe import load_recipe
    from perceptune.tools import feature_cache

    folder = None if options.dir is None else Path(options.dir)
    if options.what == "info":
        return _features_info(feature_cache.caches(folder), options.json)
    if options.what == "verify":
        damaged = feature_cache.verify(folder)
        for file, count in damaged.items():
            out.print(f"{file}: {count} damaged")
        out.print("what is damaged is not used; `perceptune features gc` removes it, the next use computes it anew"
                  if damaged else "every row is as it was written")  # fmt: skip
        return 1 if damaged else 0
    if options.what == "gc":
        done = feature_cache.collect_garbage(folder, older_than=options.older_than, max_gb=options.max_gb)
        for name in done["removed"]:
            out.print(f"removed {name}")
        out.print(f"{done['freed'] / 1e6:.1f} MB freed")
        return 0
    built = feature_cache.build_features(load_recipe(options.what, options.overrides), options.split)
    if options.json:
        print(json.dumps(built, indent=2))
    else:
        share = f" (process {built['rank']} of {built['world']})" if built["world"] > 1 else ""
        out.print(f"{built['computed']} rows computed for {built['media']} media in {built['seconds']:.1f} s, "
                  f"{built['media_per_second']:.0f}/s; the cache has {built['bytes'] / 1e6:.1f} MB{share}")  # fmt: skip
        for name, reason in built["broken"].items():
            out.print(f"broken: {reason if name in reason else f'{name}: {reason}'}")
    return 1 if built["broken"] else 0


def _features_info(found: Sequence[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    table = Table("kind", "encoder", "levels", "dtype", "rows", "MB", "last use", "folder")
    for one in found:
        day = time.strftime("%Y-%m-%d", time.localtime(one["last_use"]))
        levels = ",".join(map(str, one["levels"]))
        table.add_row(one["kind"], one["encoder"], levels, one["dtype"], str(one["rows"]),
                      f"{one['bytes'] / 1e6:.1f}", day, Path(one["folder"]).name)  # fmt: skip
    out.print(table)
    return 0


def _training_recipe(options: argparse.Namespace) -> tuple[Any, Any]:
    """The named recipe, or one made of the flags alone."""
    flags: Any = [(key, value) for key, value in (
        ("lm.id", options.lm), ("encoders.image.id", options.encoder), ("method.name", options.method),
        *_data_flags(options),
    ) if value is not None]  # fmt: skip
    overrides = flags + options.overrides
    if options.recipe:
        return options.recipe, overrides
    if options.resume and options.run:
        return None, overrides  # the run's own recipe
    if not overrides:
        raise UserError("nothing to train: name a recipe, or at least --data FILE or --task NAME")
    return {"name": options.task or (Path(options.data).stem if options.data else "run")}, overrides


def _data_flags(options: argparse.Namespace) -> Sequence[tuple[str, str | None]]:
    """Recipe keys of --task, --data and --validation. What --data sets is the reader's to say."""
    if not (options.data or options.validation):
        return [("task.name", options.task)]
    from perceptune.data.build_task import data_keys, validation_keys

    named = _named_task(options)
    name = named or "jsonl"
    keys = data_keys(name, options.data) if options.data else {}
    if options.validation:
        keys |= validation_keys(name, options.validation)
    return [("task.name", options.task if named else name), *((f"task.{key}", value) for key, value in keys.items())]


def _named_task(options: argparse.Namespace) -> str | None:
    """The task that the words of the command name, else that of the recipe or of the run to resume."""
    from perceptune.config.recipe import find_recipe, read_yaml
    from perceptune.config.substitution import part_names
    from perceptune.models.run_location import RECIPE

    given = [word.partition("=")[2] for word in options.overrides if word.startswith(("task=", "task.name="))]
    if given or options.task:
        return given[-1] if given else options.task
    own = Path(options.run) / RECIPE if options.run and options.resume else None
    source = find_recipe(options.recipe) if options.recipe else own
    return part_names(read_yaml(source))["task"] if source is not None and source.is_file() else None
