"""Evaluation by real generation, with the shuffled-media control and intervals."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perceptune.checkpoint import load, read_meta, write_text
from perceptune.config import Recipe, validate
from perceptune.distributed import World
from perceptune.errors import UserError, nearest
from perceptune.lazy import select
from perceptune.lighter import lighten
from perceptune.model import AdaptedModel
from perceptune.order import subset
from perceptune.plugins import leaf
from perceptune.runlog import progress, read_log
from perceptune.statistics import bootstrap_difference, bootstrap_interval
from perceptune.tasks.base import Task
from perceptune.types import Sample

RESULTS, PREDICTIONS, SHUFFLED = "results.json", "predictions.jsonl", "predictions_shuffled.jsonl"
SUBSET_SEED = 1234  # the evaluated subset must not move when the training seed does


@dataclass(frozen=True)
class Scores:
    """Answers of one pass over an evaluated set, and what they are worth."""

    summary: dict[str, float]
    per_sample: list[dict[str, float]]
    raw: list[str]


def make_task(recipe: Recipe) -> Task:
    """The recipe's task."""
    if recipe.task is None:
        raise UserError("the recipe names no `task`: name one, or give your own data as `task: jsonl`")
    module = leaf("tasks", recipe.task.name).module
    given = recipe.task.options()
    if recipe.train.max_bad_media and "check_files" in module.TASK.Options.model_fields:
        given.setdefault("check_files", False)  # missing media are counted while training instead
    task: Task = module.TASK(validate(module.TASK.Options, given, f"task `{recipe.task.name}`"))
    return task


def evaluate(
    run: str | Path, *, split: str | None = None, samples: int | None = None, control: bool | None = None,
    batch_size: int | None = None, trust: bool = False, overrides: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Evaluates a run folder's model and writes `results.json` and predictions into it; returns the results.

    `control` also answers with the media shuffled among the samples, same prompts. Defaults come from the recipe, whose
    `decode` and `eval` keys `overrides` may change.
    """
    run = Path(run)
    world = World()
    with world.together():
        # Of several processes each has a device of its own.
        model = load(run, trust=trust, overrides=overrides, device=None if world.size == 1 else "cpu")
        config = model.recipe.eval
        task = make_task(model.recipe)
        split = split or config.split or task.splits[-1]
        chosen = pick_samples(task, split, config.samples if samples is None else samples)
        require_judgeable(task, chosen)  # before hours of generation, not after
        with_control = config.shuffled_control if control is None else control
        shuffled = shuffle_media(chosen, model.recipe.seed) if with_control else []
    if world.size > 1:
        world.place(model)
    if config.dtype == "bfloat16" and not world.sharded:
        lighten(model.lm, 0, model.recipe.train.packed_memory_mb)
    with world.together():
        model.prepare(chosen, rank=world.rank, world=world.size)  # those of the shuffled control are the same
    scores = judge(model, task, chosen, world, batch_size=batch_size, label="evaluate")
    blind = judge(model, task, shuffled, world, batch_size=batch_size, label="shuffled control") if shuffled else None
    return world.from_main(lambda: _written(run, model, task, split, chosen, scores, shuffled, blind))


def _written(
    run: Path, model: AdaptedModel, task: Task, split: str, chosen: Sequence[Sample], scores: Scores,
    shuffled: Sequence[Sample], blind: Scores | None,
) -> dict[str, Any]:  # fmt: skip
    """The results, after they and the predictions have been written into the run folder."""
    results: dict[str, Any] = {
        "metrics": [*scores.summary],
        **scores.summary,
        f"{task.metric}_interval": _interval(task.metric, chosen, scores),
    }
    write_predictions(run / PREDICTIONS, chosen, task, scores)
    (run / SHUFFLED).unlink(missing_ok=True)  # one of an earlier evaluation would not belong to these results
    if blind is not None:
        write_predictions(run / SHUFFLED, shuffled, task, blind)
        results |= {f"{key}_shuffled": value for key, value in blind.summary.items()}
        results |= _gaps(chosen, scores, blind)
    results |= _how(model, task, split, chosen) | _training_of(run)
    write_text(run / RESULTS, json.dumps(results, indent=2))
    return results


def pick_samples(task: Task, split: str, size: int | None) -> Sequence[Sample]:
    """A fixed random subset of a split."""
    if size is not None and size < 1:
        raise UserError(f"cannot evaluate {size} samples: name at least 1")
    rows = task.samples(split)
    if not rows:
        raise UserError(f"split `{split}` is empty: there is nothing to evaluate")
    return select(rows, subset(len(rows), size, SUBSET_SEED))


def require_judgeable(task: Task, samples: Sequence[Sample]) -> None:
    """Raises `UserError` if these samples lack targets or the task's metric cannot be computed from them."""
    summary, _ = task.score([""] * len(samples), samples)
    if task.metric not in summary:
        raise UserError(f"the {len(samples)} evaluated samples give no `{task.metric}`{nearest(task.metric, summary)}")


def judge(
    model: AdaptedModel, task: Task, samples: Sequence[Sample], world: World, *, batch_size: int | None = None,
    label: str = "",
) -> Scores:  # fmt: skip
    """Answers and scores of samples, the same on every process: each answers a part, the main one scores."""
    size = batch_size or model.recipe.eval.batch_size
    own, raw = world.deal(samples), list[str]()
    error: UserError | OSError | None = None
    most = math.ceil(len(samples) / world.size)  # of any process
    with progress(len(own), label) as bar:
        for start in range(0, most, size):
            part = own[start : start + size]
            if not part and not world.sharded:
                break
            try:  # a process without rows answers one for nothing where the others need it to
                answers = model.answer(part or list(samples[:1]), batch_size=size)
            except (UserError, OSError) as caught:
                if world.sharded:
                    raise  # the others wait inside the LM, where they cannot be told
                error = caught
                break
            raw += answers[: len(part)]
            bar.advance(len(part))
    world.agree(error)
    answered = world.collect(raw)
    return world.from_main(lambda: Scores(*task.score(answered, samples), answered))


def shuffle_media(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The same prompts over a seeded derangement of the media: no sample keeps its own.

    Distinct media are moved around one cycle, so two questions on one picture get the same other picture.
    """
    modalities = sorted({modality for sample in samples for modality in sample.media})
    moved = list(samples)
    for modality in modalities:
        media = list(dict.fromkeys(s.media[modality] for s in samples if modality in s.media))
        if len(media) < 2:
            raise UserError(f"the shuffled control needs at least two different media (`{modality}` has {len(media)})")
        random.Random(seed).shuffle(media)
        following = dict(zip(media, media[1:] + media[:1], strict=True))
        moved = [
            replace(s, media={**s.media, modality: following[s.media[modality]]}) if modality in s.media else s
            for s in moved
        ]
    return moved


def write_predictions(path: Path, samples: Sequence[Sample], task: Task, scores: Scores) -> None:
    """One JSON line per sample: question, answer as written and cleaned, targets, scores."""
    lines = []
    for sample, raw, row in zip(samples, scores.raw, scores.per_sample, strict=True):
        media = {name: str(m) for name, m in sample.media.items() if not isinstance(m, bytes)}
        lines.append(
            {"id": sample.id, "media": media, "prompt": sample.prompt, "answer": task.clean(raw), "raw": raw,
             "targets": list(sample.targets), "scores": row, "meta": dict(sample.meta)}
        )  # fmt: skip
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _interval(metric: str, samples: Sequence[Sample], scores: Scores) -> list[float]:
    rows = [i for i, row in enumerate(scores.per_sample) if metric in row]
    values = [scores.per_sample[i][metric] for i in rows]
    return list(bootstrap_interval(values, groups=[_media_of(samples[i]) for i in rows]))


def gap_name(key: str) -> str:
    """`accuracy_open` -> `gap_open`, `accuracy` -> `gap`."""
    return f"gap{key.removeprefix('accuracy')}" if key.startswith("accuracy") else f"gap_{key}"


def _gaps(samples: Sequence[Sample], seen: Scores, blind: Scores) -> dict[str, Any]:
    """How far seeing beats guessing, for each summary value, with paired intervals; one picture is one draw."""
    gaps: dict[str, Any] = {}
    for key in seen.summary:
        rows = [i for i, row in enumerate(seen.per_sample) if key in row]
        a = [seen.per_sample[i][key] for i in rows]
        b = [blind.per_sample[i][key] for i in rows]
        gaps[gap_name(key)] = (sum(a) - sum(b)) / len(rows)
        interval = bootstrap_difference(a, b, groups=[_media_of(samples[i]) for i in rows])
        gaps[f"{gap_name(key)}_interval"] = list(interval)
    return gaps


def _media_of(sample: Sample) -> tuple[Any, ...]:
    """What makes samples dependent: questions on one picture are right or wrong together."""
    return tuple(sorted(sample.media.items())) or (sample.id,)


def _how(model: AdaptedModel, task: Task, split: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """How the numbers were made; a number without it cannot be compared."""
    return {
        "evaluated_samples": len(samples), "split": split, "trained_on_this_split": split == task.splits[0],
        "decoding": model.recipe.decode.model_dump(), "dtype": str(model.lm.dtype).removeprefix("torch."),
        "template": model.recipe.text.template,
    }  # fmt: skip


def _training_of(run: Path) -> dict[str, Any]:
    """What the run cost to train, as far as it was trained."""
    steps = [row for row in read_log(run) if row["event"] in ("step", "end")]
    seconds, seen = (steps[-1]["seconds"], steps[-1]["samples"]) if steps else (0.0, 0)
    return {
        "trained_share": read_meta(run)["trained_share"], "train_seconds": seconds, "train_samples": seen,
        "samples_per_second": seen / seconds if seconds else 0.0,
    }  # fmt: skip
