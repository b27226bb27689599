"""The runs of a comparison, one after the other; finished ones are not repeated."""

import gc
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from perceptune.config.recipe import Recipe
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.evaluation.evaluate import evaluate
from perceptune.evaluation.results import RESULTS, read_stored_predictions
from perceptune.evaluation.runner import select_subset
from perceptune.models.build import build_to_train
from perceptune.models.run_folder import METHOD, RECIPE, read_recipe
from perceptune.tools.compare.plan import Plan, PlannedRow, Setting, folder_name, setting_name
from perceptune.tools.compare.prior import prior_of
from perceptune.tools.compare.report import Outcome, summarise
from perceptune.training.checkpoints import require_same_recipe
from perceptune.training.sampler import planned_length
from perceptune.training.trainer import train
from perceptune.utils.launch_environment import read_launch
from perceptune.utils.run_log import read_log

TIMES = "times.json"  # beside a run: the comparison's time for it, loading included
PROBED = 4  # steps from which a duration is estimated
TEXT_TOKENS = 16  # assumed per text if batches are limited by tokens
METRIC_ALONE: dict[str, Any] = {"control": False, "no_media": False, "overrides": ("eval.others={}",)}  # of `evaluate`
PrintFn = Callable[[str], None]


class _Run(NamedTuple):
    """One training: its recipe and its folder."""

    recipe: Recipe
    folder: Path


def run_plan(plan: Plan, out: Path, say: PrintFn) -> dict[str, Any]:
    """Train, select, test and return the table (`report.summarise`), which is also written into `out`.

    Finished runs of an earlier call are reused. Each run has a new model, as a method may hook the LM anywhere.
    """
    if read_launch(meeting=False).size > 1:
        raise UserError("a comparison runs in one process: start it without a launcher")
    outcomes = []
    for number, entry in enumerate(plan.entries, 1):
        say(f"[{number}/{len(plan.entries)}] {entry.label}")
        setting, validation = _select(plan, entry, out, say)
        runs = {seed: _run(out, entry, setting, seed) for seed in plan.seeds}
        for seed, run in runs.items():
            _trained(run)
            result = _evaluated(run, plan.test_on, run.recipe.eval.samples, run.folder)
            say(f"  seed {seed}: {plan.metric} {result[plan.metric]:.4f} on `{plan.test_on}`")
        outcomes.append(Outcome(entry, setting, validation, {seed: _tested(run) for seed, run in runs.items()}))
    return summarise(plan, outcomes, prior_of(plan), out)


def _select(plan: Plan, entry: PlannedRow, out: Path, say: PrintFn) -> tuple[Setting, dict[str, float]]:
    """Return the best setting on the validation data, with the first seed; of equal ones the first."""
    if plan.select_on is None:
        return entry.settings[0], {}
    found: dict[str, float] = {}
    for setting in entry.settings:
        run, name = _run(out, entry, setting, plan.seeds[0]), setting_name(setting)
        _trained(run)
        into = run.folder / f"selection-{plan.select_samples or 'all'}"
        found[name] = _evaluated(run, plan.select_on, plan.select_samples, into)[plan.metric]
        say(f"  {name}: {plan.metric} {found[name]:.4f} on `{plan.select_on}`")
    return max(entry.settings, key=lambda setting: found[setting_name(setting)]), found


def _run(out: Path, entry: PlannedRow, setting: Setting, seed: int) -> _Run:
    folder = out / "runs" / folder_name(entry.label) / folder_name(setting_name(setting)) / f"seed-{seed}"
    return _Run(entry.with_(setting, seed), folder)


def _is_trained(run: _Run) -> bool:
    """Return whether the run has ended. Raises `UserError` if it was made by another recipe."""
    if not (run.folder / RECIPE).is_file():
        return False
    require_same_recipe(run.folder, read_recipe(run.folder), run.recipe)
    return (run.folder / METHOD).is_file() and any(row["event"] == "end" for row in read_log(run.folder))


def _trained(run: _Run) -> None:
    if _is_trained(run):
        return
    start = time.monotonic()
    result = train(run.recipe, run.folder, resume=(run.folder / RECIPE).is_file())
    if result.interrupted:
        raise KeyboardInterrupt
    _note_time(run.folder, "train", time.monotonic() - start)
    gc.collect()  # the model has reference cycles (hooks): free its memory before the next one is loaded


def _evaluated(run: _Run, split: str, samples: int | None, into: Path) -> dict[str, Any]:
    if not (into / RESULTS).is_file():
        start = time.monotonic()
        # Settings beyond the metric apply to the test only: a control of the validation data selects nothing.
        asked: dict[str, Any] = {} if into == run.folder else METRIC_ALONE
        evaluate(run.folder, split=split, samples=samples, into=into, **asked)
        _note_time(run.folder, split, time.monotonic() - start)
        gc.collect()
    return _read(into / RESULTS)


def _tested(run: _Run) -> dict[str, Any]:
    """Return results on the test split, with each sample's score and the speed of training."""
    rows, speed = read_stored_predictions(run.folder), training_speed(run.folder)
    return {**_read(run.folder / RESULTS), "rows": rows, "speed": speed}


def training_speed(run: Path) -> float | None:
    """Return samples per second of a typical step, without features, evaluations and interruptions."""
    steps = [row for row in read_log(run) if row["event"] == "step"]
    pairs = [(b["samples"] - a["samples"], b["seconds"] - a["seconds"]) for a, b in itertools.pairwise(steps)]
    rates = [samples / seconds for samples, seconds in pairs if seconds > 0]
    return median(rates) if rates else None


def _note_time(folder: Path, what: str, seconds: float) -> None:
    times = _times(folder)
    times[what] = times.get(what, 0.0) + seconds
    (folder / TIMES).write_text(json.dumps(times), encoding="utf-8")


def _times(folder: Path) -> dict[str, float]:
    return _read(folder / TIMES) if (folder / TIMES).is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def outlook(plan: Plan, out: Path) -> dict[str, Any]:
    """Estimate how many runs there are, how many are finished, and the minutes of the others.

    A row with finished runs is as fast as those were; the others as fast as a probe of four steps of the first row.
    """
    seconds, left = 0.0, 0
    probe: dict[str, float] | None = None
    for entry in plan.entries:
        runs = [_run(out, entry, setting, plan.seeds[0]) for setting in entry.settings]
        # The setting to be chosen is not known yet: all take equally long.
        runs += [_run(out, entry, entry.settings[0], seed) for seed in plan.seeds[1:]]
        finished = [times for run in runs if _is_trained(run) and "train" in (times := _times(run.folder))]
        open_ = sum(not _is_trained(run) for run in runs)
        left += open_
        if open_ and finished:
            seconds += open_ * sum(sum(times.values()) for times in finished) / len(finished)
        elif open_:
            probe = probe or _probe(entry, plan)
            seconds += open_ * _estimated(entry.recipe, plan, probe)
    return {"runs": plan.runs, "left": left, "minutes": seconds / 60}


def _probe(entry: PlannedRow, plan: Plan) -> dict[str, float]:
    """Measure seconds of loading, of a sample in training, of an answer."""
    recipe = entry.with_({"train.steps": PROBED, "train.standardize_samples": 16}, plan.seeds[0])
    start = time.monotonic()
    build_to_train(recipe)
    loading = time.monotonic() - start
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, folder)
        speed = training_speed(Path(folder))
        asked = recipe.eval.batch_size
        for _ in range(2):  # the second time features are cached
            start = time.monotonic()
            found = evaluate(folder, split=plan.test_on, samples=asked, **METRIC_ALONE)
        answering = max(time.monotonic() - start - loading, 0.0) / found["evaluated_samples"]
    return {"loading": loading, "sample": 1 / speed if speed else 0.0, "answer": answering}


def _estimated(recipe: Recipe, plan: Plan, probe: dict[str, float]) -> float:
    """Estimate seconds of one run."""
    task = make_task(recipe)
    _, samples = planned_length(recipe.train, len(task.samples(task.splits[0])), TEXT_TOKENS, recipe.seed)
    controls = recipe.eval.shuffled_control + recipe.eval.no_media_control
    answers = len(select_subset(task, plan.test_on, recipe.eval.samples)) * (1 + controls)
    return 2 * probe["loading"] + samples * probe["sample"] + answers * probe["answer"]


def plan_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """Return label, trained parameters and their fraction for each row, as text."""
    return [(entry.label, f"{entry.trained:,}", f"{100 * entry.share:.3f} %") for entry in plan.entries]
