"""Evaluation by real generation, with the shuffled-media control and intervals."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perceptune.building import text_of
from perceptune.checkpoint import load, read_meta, write_text
from perceptune.config import Recipe, validate
from perceptune.distributed import World
from perceptune.errors import UserError, nearest
from perceptune.holdout import HoldOut
from perceptune.lazy import select
from perceptune.model import AdaptedModel
from perceptune.order import subset
from perceptune.plugins import leaf
from perceptune.runlog import progress, read_log
from perceptune.sections import NamedPart, OtherSet
from perceptune.statistics import bootstrap_difference, bootstrap_gap, bootstrap_interval
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
    """The recipe's task, with what it holds out of the training split as a split of its own."""
    if recipe.task is None:
        raise UserError("the recipe names no `task`: name one, or give your own data as `task: jsonl`")
    task = task_of(recipe.task, max_bad_media=recipe.train.max_bad_media)
    return task if recipe.train.hold_out is None else HoldOut(task, recipe.train.hold_out)


def task_of(part: NamedPart, *, max_bad_media: int = 0) -> Task:
    """A task with its options."""
    module = leaf("tasks", part.name).module
    given = part.options()
    if max_bad_media and "check_files" in module.TASK.Options.model_fields:
        given.setdefault("check_files", False)  # missing media are counted while training instead
    task: Task = module.TASK(validate(module.TASK.Options, given, f"task `{part.name}`"))
    return task


def evaluate(
    run: str | Path, *, split: str | None = None, samples: int | None = None, control: bool | None = None,
    batch_size: int | None = None, trust: bool = False, overrides: Sequence[str] = (), into: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluates a run folder's model and writes `results.json` and predictions into it; returns the results.

    `control` also answers with the media shuffled among the samples, same prompts. The data sets of `eval.others`
    follow, with the gap to them. Defaults come from the recipe, whose `decode` and `eval` keys `overrides` may change.
    `into` is another folder for what is written.
    """
    run = Path(run)
    folder = run if into is None else Path(into)
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
        others = {name: _other_set(other) for name, other in config.others.items()}
    if world.size > 1:
        world.place(model)
    model.get_ready(training=False, sharded=world.sharded)
    with world.together():
        model.prepare(chosen, rank=world.rank, world=world.size)  # those of the shuffled control are the same
    scores = judge(model, task, chosen, world, batch_size=batch_size, label="evaluate")
    blind = judge(model, task, shuffled, world, batch_size=batch_size, label="shuffled control") if shuffled else None
    judged = {}
    for name, other in others.items():
        with _in_words_of(model, config.others[name]):
            with world.together():
                model.prepare(other.samples, rank=world.rank, world=world.size)
            judged[name] = judge(
                model, other.task, other.samples, world, batch_size=batch_size, label=f"evaluate {name}"
            )

    def written() -> dict[str, Any]:
        results = _written(folder, task, chosen, scores, shuffled, blind)
        results |= _how(model, task, split, chosen) | _training_of(run)
        if others:
            results["others"] = {
                name: _transfer(folder, name, chosen, scores, others[name], judged[name]) for name in others
            }
        write_text(folder / RESULTS, json.dumps(results, indent=2))
        return results

    return world.from_main(written)


def _written(
    folder: Path, task: Task, chosen: Sequence[Sample], scores: Scores, shuffled: Sequence[Sample],
    blind: Scores | None,
) -> dict[str, Any]:  # fmt: skip
    """What the answers are worth, after they have been written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "metrics": [*scores.summary],
        **scores.summary,
        f"{task.metric}_interval": _interval(task.metric, chosen, scores),
    }
    write_predictions(folder / PREDICTIONS, chosen, task, scores)
    (folder / SHUFFLED).unlink(missing_ok=True)  # one of an earlier evaluation would not belong to these results
    if blind is not None:
        write_predictions(folder / SHUFFLED, shuffled, task, blind)
        results |= {f"{key}_shuffled": value for key, value in blind.summary.items()}
        results |= _gaps(chosen, scores, blind)
    return results


@dataclass(frozen=True)
class _Other:
    """A data set of `eval.others`, found to be judgeable."""

    task: Task
    split: str
    samples: Sequence[Sample]


def _other_set(other: OtherSet) -> _Other:
    task = task_of(other.task)
    split = other.split or task.splits[-1]
    samples = pick_samples(task, split, other.samples)
    require_judgeable(task, samples)
    return _Other(task, split, samples)


@contextmanager
def _in_words_of(model: AdaptedModel, other: OtherSet) -> Iterator[None]:
    """The model with another data set's template and decoding meanwhile."""
    recipe, text = model.recipe, model.text
    model.recipe = recipe.model_copy(
        update={"text": other.text or recipe.text, "decode": other.decode or recipe.decode}
    )
    try:
        if other.text or other.decode:
            model.text = text_of(model)
        yield
    finally:
        model.recipe, model.text = recipe, text


def _transfer(
    folder: Path, name: str, samples: Sequence[Sample], seen: Scores, other: _Other, scores: Scores
) -> dict[str, Any]:
    """What the answers on another data set are worth, and for each value that both sets have how far they differ."""
    write_predictions(folder / f"predictions_{name}.jsonl", other.samples, other.task, scores)
    gaps = {}
    for key in seen.summary:
        (a, groups_a), (b, groups_b) = _values(key, samples, seen), _values(key, other.samples, scores)
        if a and b:
            interval = bootstrap_gap(a, b, groups_a=groups_a, groups_b=groups_b)
            gaps[key] = {"in": seen.summary[key], "out": scores.summary[key],
                         "difference": seen.summary[key] - scores.summary[key], "interval": list(interval)}  # fmt: skip
    return {
        "metric": other.task.metric, "metrics": [*scores.summary], **scores.summary,
        f"{other.task.metric}_interval": _interval(other.task.metric, other.samples, scores),
        "split": other.split, "evaluated_samples": len(other.samples), "gaps": gaps,
    }  # fmt: skip


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
    values, groups = _values(metric, samples, scores)
    return list(bootstrap_interval(values, groups=groups))


def _values(metric: str, samples: Sequence[Sample], scores: Scores) -> tuple[list[float], list[tuple[Any, ...]]]:
    """The metric of each sample that has it, and what is resampled together."""
    rows = [i for i, row in enumerate(scores.per_sample) if metric in row]
    return [scores.per_sample[i][metric] for i in rows], [_media_of(samples[i]) for i in rows]


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
    trained = model.recipe.train.steps != 0
    return {
        "evaluated_samples": len(samples), "split": split, "trained_on_this_split": trained and split == task.splits[0],
        "decoding": model.recipe.decode.model_dump(), "dtype": str(model.dtype).removeprefix("torch."),
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
