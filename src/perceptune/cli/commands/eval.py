"""Evaluate a run by generating answers.

Examples:
  perceptune eval runs/mine
  perceptune eval runs/mine --control --no-media decode.beams=3
  perceptune eval runs/mine --ensemble runs/second --data other.jsonl
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.cli.output import out, print_json, print_scores
from perceptune.cli.parsing import Namespace, Parser, words_of
from perceptune.errors import UserError
from perceptune.utils.paths import local_name
from perceptune.utils.run_log import is_main_process
from perceptune.utils.terminal import print_note


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_overrides("decode.* and eval.* keys, and with --task or --data task.* keys")
    parser.add_argument("--split", help="split to evaluate on (default: the recipe's, else the task's last)")
    parser.add_argument("--samples", type=int, metavar="N", help="evaluate on a fixed random subset of N samples")
    parser.add_argument("--task", help="a task other than the run's own; see `perceptune list tasks`")
    parser.add_argument(
        "--data", metavar="PATH", help="other data, in any form: it is recognised unless --task names it"
    )
    parser.add_media()
    parser.add_fetch_media()
    parser.add_ensemble()
    parser.add_argument("--gap", action="store_true", help="compare the run's own data with --task and --data")
    parser.add_argument("--control", action="store_true", default=None, help="evaluate with shuffled media, too")
    parser.add_argument("--no-media", action="store_true", default=None, help="evaluate without media, too")
    told = "evaluate with the media of each sample in reverse order, too"
    parser.add_argument("--exchanged", action="store_true", help=told)
    parser.add_argument("--report", action="store_true", help="print baselines, examples and what to try next, too")
    parser.add_argument("--predictions", metavar="FILE", help="score these answers; the model is not run")
    parser.add_argument("--out", help="folder of the results (default: the run's; RUN/eval/NAME for another task)")
    parser.add_json()
    parser.add_join_timeout()
    parser.add_trust()


def run(options: Namespace) -> None:
    """Evaluate, and print the scores."""
    from perceptune.evaluation.evaluate import evaluate
    from perceptune.evaluation.first_look import first_look, report_lines
    from perceptune.evaluation.rescore import rescore

    wants_report = options.report and is_main_process()
    others = _other_set(options) if options.gap else ()
    task = None if options.gap else named_task(options)
    words = options.overrides
    if task is not None or options.gap:
        words = [word for word in words if not word.startswith("task.")]
    overrides = [*others, *(["eval.at_end=true"] if options.report else []), *words]  # which has the same report
    folder = _folder(options, task)
    split = None if options.gap else options.split
    common = {"samples": options.samples, "trust": options.trust, "task": task, "command": options.words}
    if options.predictions:
        for given in ("control", "no_media", "exchanged", "gap", "report", "ensemble"):
            if getattr(options, given):
                raise UserError(f"--{given.replace('_', '-')} needs the model's answers, --predictions gives others")
        if words:
            raise UserError(f"`{words[0]}`: stored predictions are scored as they are")
        results = rescore(options.run, options.predictions, folder, split=split, **common)
    else:
        results = evaluate(
            options.run, control=options.control, no_media=options.no_media, exchanged=options.exchanged,
            split=split, overrides=overrides, into=folder, join_timeout=options.join_timeout, ensemble=options.ensemble,
            **common,
        )  # fmt: skip
    found = first_look(options.run, folder, task=task, trust=options.trust) if wants_report else None
    if options.json and is_main_process():
        print_json(results if found is None else {**results, "report": found})
    elif not options.json:
        print_scores(results)
        out.print(f"predictions and results: {folder}")
        if found is not None:
            out.print("\n".join(report_lines(found)), markup=False)


def named_task(options: Namespace) -> dict[str, Any] | None:
    """Return `--task` and `--data` as a task's keys, with the run's own for scoring; None if neither is given."""
    from perceptune.config.recipe import absolute_files
    from perceptune.data.recognition.task_keys import find_reader, recognize_task, task_options

    words = words_of(options)
    if options.data is None and options.task:
        return {"name": options.task, **task_options(words, options.task)}
    if options.data is None:
        if options.fetch_media:
            raise UserError(
                "--fetch-media is for --data or --task: the run's own data follow its recipe's `fetch_media`"
            )
        return None
    how = {
        "split": options.split or "train",
        "media": options.media,
        "words": words,
        "settings": _settings(options.run),
    }
    place = local_name(options.data)
    if options.task:
        form, given = find_reader(place, reader=options.task, **how)
        return absolute_files({**form.task, **given})
    data = recognize_task(place, **how)
    if data.doubt is not None and len(data.found.targets) > 1:  # one class cannot be learned, but evaluated
        raise data.doubt
    print_note(data.line)
    return absolute_files(data.task)


def _settings(run: str) -> dict[str, Any]:
    """Return the options of a run's own task that hold for other data, too."""
    from perceptune.evaluation.prediction_rows import run_settings
    from perceptune.models.run_folder import RECIPE, read_recipe
    from perceptune.models.run_location import local_run

    folder = local_run(run)
    return run_settings(read_recipe(folder)) if (folder / RECIPE).is_file() else {}


def _other_set(options: Namespace) -> Sequence[tuple[str, Any]]:
    """Return `--task` and `--data` as keys of `eval.others`."""
    task = named_task(options)
    if task is None:
        raise UserError("--gap is that to another data set: name it by --data or --task")
    name = _name_of(options)
    keys = [(f"eval.others.{name}.task.{key}", value) for key, value in task.items()]
    return [*keys, (f"eval.others.{name}.split", options.split)] if options.split else keys


def _name_of(options: Namespace) -> str:
    return re.sub(r"[^\w-]", "-", Path(options.data).stem if options.data else options.task)


def _folder(options: Namespace, task: dict[str, Any] | None) -> Path:
    """Return where results go: the run's own into its folder, others apart from them."""
    if options.out:
        return Path(options.out)
    if options.predictions:
        return Path(options.run) / "eval" / re.sub(r"[^\w-]", "-", Path(options.predictions).stem)
    names = [] if task is None else [_name_of(options), *([options.split] if options.split else [])]
    if options.ensemble:
        from perceptune.models.ensemble import ensemble_name

        names.append(ensemble_name(options.ensemble))
    return Path(options.run) / "eval" / "-".join(names) if names else Path(options.run)
