"""A first look at a run: its metric beside simple baselines, examples, and what the numbers suggest to try next."""

import gc
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from perceptune.config.schema import NamedPart
from perceptune.data.build_task import make_task, task_of
from perceptune.data.conversations import answers_of
from perceptune.data.holdout_split import selecting_splits
from perceptune.data.records import short
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.evaluation.clusters import cluster_of_row
from perceptune.evaluation.evaluate import evaluate
from perceptune.evaluation.results import PREDICTIONS, RESULTS, gap_name, result_notes
from perceptune.evaluation.runner import select_subset
from perceptune.models.run_folder import read_recipe
from perceptune.models.run_location import local_run
from perceptune.utils.run_log import read_log
from perceptune.utils.terminal import print_note, printable

EXAMPLES, SEED = 5, 0
FEW = 100  # media; with fewer an interval is wide
FALLING = 0.98  # of the loss in the fifth of the steps before the last


def evaluate_at_end(run: Path, *, trust: bool = False, join_timeout: float | None = None) -> None:
    """Evaluate a run that has been trained, if its recipe says so (`eval.at_end`)."""
    if read_recipe(run, trust=trust).eval.at_end:
        gc.collect()  # the trained model has reference cycles (hooks): free its memory before it is loaded again
        evaluate(run, trust=trust, join_timeout=join_timeout)


def first_look(
    run: str | Path, folder: Path | None = None, *, task: Mapping[str, Any] | None = None, trust: bool = False
) -> dict[str, Any]:
    """Return the report on an evaluated run; `folder` holds the results if they are of another `task`."""
    run = local_run(run)
    place = folder or run
    results = json.loads((place / RESULTS).read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (place / PREDICTIONS).read_text(encoding="utf-8").split("\n") if line]
    recipe = read_recipe(run, trust=trust)
    own = make_task(recipe) if recipe.task else None
    judged = own if task is None else task_of(NamedPart(**task))
    metric = results["metrics"][0] if judged is None else judged.metric
    chosen = [] if own is None or recipe.eval.every is None else selecting_splits(own.splits)
    found: dict[str, Any] = {
        "metric": metric, "value": results[metric], "interval": results[f"{metric}_interval"],
        "split": results["split"], "samples": len(rows), "trained_on": results["trained_on_this_split"],
        "chosen_on": task is None and results["split"] == (recipe.eval.during_split or next(iter(chosen), None)),
        "media": len({cluster_of_row(row) for row in rows}),
        "shuffled": results.get(f"{metric}_shuffled"), "no_media": results.get(f"{metric}_no_media"),
        "gap": results.get(gap_name(metric)), "gap_interval": results.get(f"{gap_name(metric)}_interval"),
        "always": _constant(own, judged, metric, results), "loss": _last_losses(run), **_examples(rows, metric),
        "notes": result_notes(results),
    }  # fmt: skip
    return {**found, "next": suggestions(found)}


def suggestions(found: Mapping[str, Any]) -> list[str]:
    """Return what the numbers of a report suggest."""
    said = []
    if found["trained_on"]:
        said.append("These samples were trained on: hold some out (`train.hold_out`), or name a --validation file.")
    if found["chosen_on"]:
        said.append(
            "These samples chose the checkpoint, so the value is a little too high: report on others, by a split "
            "`test` or `train.hold_out`."
        )
    if (gap := found["gap_interval"]) is not None and gap[0] <= 0:
        said.append(
            f"With shuffled media the answers are as good (gap {found['gap']:+.3f}, {gap[0]:+.3f} to {gap[1]:+.3f}): "
            "the model does not use the media yet. Train longer, or on more data."
        )
    always = found["always"]
    if always is not None and always["score"] >= found["interval"][0]:
        said.append(
            f"Answering always `{always['answer']}` scores {always['score']:.3f}, no less than the model within its "
            "interval: add samples of the rarer answers, or try `train.sampling=balanced`."
        )
    if found["loss"] is not None and found["loss"][1] < FALLING * found["loss"][0]:
        before, last = found["loss"]
        said.append(f"The loss was still falling at the end ({before:.3f} to {last:.3f}): train more steps.")
    if found["media"] < FEW:
        low, high = found["interval"]
        said.append(
            f"{found['media']} media make a wide interval ({low:.3f} to {high:.3f}): hold out or collect more of them."
        )
    return said or ["No rule applies: read the wrong answers, and compare other settings with `perceptune compare`."]


def report_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the report as text."""
    low, high = found["interval"]
    lines = [
        f"{found['metric']} {found['value']:.3f} ({low:.3f} to {high:.3f}) on {found['samples']} samples with "
        f"{found['media']} media of split `{found['split']}`"
    ]
    lines += [f"  {words}" for words in found.get("notes") or ()]
    for name, words in (("shuffled", "media shuffled"), ("no_media", "without media")):
        if found[name] is not None:
            lines.append(f"  {words}: {found[name]:.3f}")
    if found["always"] is not None:
        lines.append(f"  always `{found['always']['answer']}`: {found['always']['score']:.3f}")
    for part in ("right", "wrong", "best", "worst"):
        if found.get(part):
            lines += ["", f"{part}:", *map(_example_line, found[part])]
    lines += ["", "what to try next:", *(f"  - {text}" for text in found["next"])]
    return list(map(printable, lines))


def _example_line(row: Mapping[str, Any]) -> str:
    turns = "".join(f"{short(turn['content'])} / " for turn in row.get("history", ()))
    prompt = f"{row['prompt']} " if row["prompt"] else ""
    return f"  {row['medium']}: {turns}{prompt}-> {row['answer']} (target: {' | '.join(row['targets'][:3])})"


def _constant(own: Task | None, judged: Task | None, metric: str, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the most frequent training answer, and its score as the answer to every evaluated sample."""
    if own is None or judged is None:
        return None
    try:
        trained = chain.from_iterable(map(answers_of, own.samples(own.splits[0])))
        counts = Counter(own.clean(target) for sample in trained for target in sample.targets)
    except UserError as error:  # such as the training data of a run from another machine
        print_note(f"the most frequent training answer is left out: {error}")
        return None
    if not counts:
        return None
    [(answer, _)] = counts.most_common(1)
    rows = results.get("evaluated_conversations", results["evaluated_samples"])
    samples = select_subset(judged, results["split"], rows)
    return {"answer": answer, "score": judged.score([answer] * len(samples), samples).summary[metric]}


def _last_losses(run: Path) -> tuple[float, float] | None:
    """Return the mean loss of the last fifth of the steps but one, and of the last; None for few steps."""
    losses = [row["loss"] for row in read_log(run) if row["event"] == "step"]
    size = len(losses) // 5
    if size < 4:
        return None
    return sum(losses[-2 * size : -size]) / size, sum(losses[-size:]) / size


def _examples(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, list[dict[str, Any]]]:
    """Return some right and wrong answers by chance; of values that grade answers the best and the worst."""
    key = next((key for key in (metric, "accuracy") if any(key in row["scores"] for row in rows)), None)
    scored = [row for row in rows if key in row["scores"]]
    if key is None:
        return {}
    if not key.startswith("accuracy"):
        ranked = sorted(scored, key=lambda row: -row["scores"][key])
        return {"best": [*map(_shown, ranked[:EXAMPLES])], "worst": [*map(_shown, ranked[::-1][:EXAMPLES])]}
    parts = {"right": [row for row in scored if row["scores"][key] >= 0.5],
             "wrong": [row for row in scored if row["scores"][key] < 0.5]}  # fmt: skip
    return {
        name: [*map(_shown, random.Random(SEED).sample(part, min(EXAMPLES, len(part))))] for name, part in parts.items()
    }


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    media = next(iter(row["media"].values()), row["id"])
    medium = ", ".join(str(place).rpartition("/")[2] for place in (media if isinstance(media, list) else [media]))
    history = {"history": row["history"]} if row.get("history") else {}
    return {"medium": medium, **history, "prompt": row["prompt"], "answer": row["answer"], "targets": row["targets"]}
