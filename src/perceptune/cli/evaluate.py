"""`eval`, `predict` and `answer`: what a run says, and what that is worth."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from perceptune.errors import UserError
from perceptune.utils.paths import local_name
from perceptune.utils.run_log import is_main_process

out = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())


def eval(options: argparse.Namespace) -> int:
    from perceptune.evaluation.evaluate import evaluate
    from perceptune.evaluation.rescore import rescore

    overrides = [*(_other_set(options) if options.gap else ()), *options.overrides]
    task = None if options.gap else _named_task(options)
    folder = _folder(options, task)
    split = None if options.gap else options.split
    common = {"samples": options.samples, "trust": options.trust, "task": task, "command": options.words}
    if options.predictions:
        for given in ("control", "no_media", "gap"):
            if getattr(options, given):
                raise UserError(f"--{given.replace('_', '-')} needs the model's answers, --predictions gives others")
        if options.overrides:
            raise UserError(f"`{options.overrides[0]}`: stored predictions are scored as they are")
        results = rescore(options.run, options.predictions, folder, split=split, **common)
    else:
        results = evaluate(
            options.run, control=options.control, no_media=options.no_media, split=split, overrides=overrides,
            into=folder, join_timeout=options.join_timeout, **common,
        )  # fmt: skip
    if options.json and is_main_process():
        print(json.dumps(results, indent=2))
    elif not options.json:
        print_scores(results)
        out.print(f"predictions and results: {folder}")
    return 0


def predict(options: argparse.Namespace) -> int:
    from perceptune.evaluation.batch_predict import predict as predict_all

    done = predict_all(
        options.run, options.source, options.out, prompt=options.prompt, trust=options.trust,
        batch_size=options.batch_size, overrides=options.overrides, join_timeout=options.join_timeout,
    )  # fmt: skip
    went_on = f" ({done.resumed_at} of them were there)" if done.resumed_at else ""
    out.print(f"{done.rows} rows{went_on}: {done.out}")
    if done.errors:
        out.print(f"{done.errors} of them could not be answered: their `error` says why")
    return 1 if done.errors else 0


def answer(options: argparse.Namespace) -> int:
    from perceptune.data.build_task import make_task
    from perceptune.data.storage import local_path
    from perceptune.lm.generation.logprobs import choices_of
    from perceptune.models.run_folder import load
    from perceptune.types import Sample

    kinds = ("image", "audio", "video")
    media = {kind: local_path(file, f"--{kind}") for kind in kinds if (file := getattr(options, kind))}
    model = load(options.run, trust=options.trust, overrides=options.overrides)
    sample = Sample("question", media, options.question)
    if options.choices:
        choices = choices_of(
            Sample("--choices", {}, "", meta={"choices": [c.strip() for c in options.choices.split(",")]})
        )
        values = model.rank([sample], [choices], normalize=model.recipe.eval.rank_normalize)[0]
        order = sorted(range(len(choices)), key=lambda i: -values[i])
        _print_ranked([(choices[i], values[i]) for i in order], options)
        return 0
    raw = model.answer([sample])[0]
    text = make_task(model.recipe).clean(raw) if model.recipe.task else raw.strip()
    tokens = model.token_logprobs([sample])[0] if options.logprobs else []
    if options.json:
        given = {"tokens": [list(token) for token in tokens]} if options.logprobs else {}
        print(json.dumps({"answer": text, "raw": raw, **given}))
    else:
        print(text)
        for token, value in tokens:
            print(f"{value:9.4f}  {token!r}")
    return 0


def _print_ranked(ranked: Sequence[tuple[str, float]], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"answer": ranked[0][0], "logprobs": dict(ranked)}))
        return
    print(ranked[0][0])
    for choice, value in ranked if options.logprobs else ():
        print(f"{value:9.4f}  {choice}")


def _named_task(options: argparse.Namespace) -> dict[str, Any] | None:
    """`--task` and `--data` as a task's keys; None where neither is given."""
    from perceptune.config.recipe import absolute_files
    from perceptune.data.build_task import data_keys

    if not options.data and not options.task:
        return None
    task: dict[str, Any] = {"name": options.task or "jsonl"}
    if not options.data:
        return task
    return absolute_files(task | data_keys(task["name"], local_name(options.data), options.split))


def _other_set(options: argparse.Namespace) -> Sequence[tuple[str, Any]]:
    """The same as keys of `eval.others`."""
    task = _named_task(options)
    if task is None:
        raise UserError("--gap is that to another data set: name it by --data or --task")
    name = _name_of(options)
    keys = [(f"eval.others.{name}.task.{key}", value) for key, value in task.items()]
    return [*keys, (f"eval.others.{name}.split", options.split)] if options.split else keys


def _name_of(options: argparse.Namespace) -> str:
    return re.sub(r"[^\w-]", "-", Path(options.data).stem if options.data else options.task)


def _folder(options: argparse.Namespace, task: dict[str, Any] | None) -> Path:
    """Where results go: the run's own into its folder, others apart from them."""
    if options.out:
        return Path(options.out)
    if options.predictions:
        return Path(options.run) / "eval" / re.sub(r"[^\w-]", "-", Path(options.predictions).stem)
    if task is None:
        return Path(options.run)
    return Path(options.run) / "eval" / "-".join([_name_of(options), *([options.split] if options.split else [])])


def print_scores(results: dict[str, Any]) -> None:
    """Summary values beside their controls, with intervals."""
    from perceptune.evaluation.controls import CONTROLS
    from perceptune.evaluation.results import gap_name

    first = results["metrics"][0]
    controls = [name for name in CONTROLS if f"{first}_{name}" in results] or ["shuffled"]
    words = {"shuffled": "media shuffled", "no_media": "no media"}
    heading = [Column(word, no_wrap=True) for name in controls for word in (words[name], "gap (95 % interval)")]
    table = Table(Column("", no_wrap=True), "with its media", *heading)
    for key in results["metrics"]:
        row = [key, f"{results[key]:.3f}"]
        for name in controls:
            other, gap = results.get(f"{key}_{name}"), gap_name(key, name)
            row += (
                ["", ""]
                if other is None
                else [f"{other:.3f}", _with_interval(results[gap], results[f"{gap}_interval"])]
            )
        table.add_row(*row)
    out.print(table)
    where = f"{results['evaluated_samples']} samples of split `{results['split']}`"
    if results["trained_on_this_split"]:
        where += ": the run was trained on it, so this says nothing about new data (give a --validation file)"
    out.print(where)
    if "others" in results:
        out.print(_gap_table(results["others"]))


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:+.3f}" if interval is None else f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"


def _gap_table(others: dict[str, Any]) -> Table:
    """The run's own data set against others."""
    table = Table("other data", "", "own", "other", Column("own - other (95 % interval)", no_wrap=True))
    for name, other in others.items():
        for key in other["metrics"]:
            gap = other["gaps"].get(key)
            own = ("", "") if gap is None else (
                f"{gap['in']:.3f}", _with_interval(gap["difference"], gap.get("interval"))
            )  # fmt: skip
            table.add_row(f"{name}, {other['evaluated_samples']} samples", key, own[0], f"{other[key]:.3f}", own[1])
    return table
