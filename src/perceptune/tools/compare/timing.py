"""`perceptune compare --timing`: time of an optimizer step of each row, all rows side by side.

The rows' models are in memory together and run in alternation, so that noise of the machine affects all alike.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from perceptune.config.recipe import Recipe
from perceptune.data.build_task import make_task
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError
from perceptune.models.build import build_to_train
from perceptune.tools.compare.plan import Plan, PlannedRow
from perceptune.training.batch_loader import BatchLoader
from perceptune.training.optimizer import MethodOptimizer
from perceptune.training.reward import make_objective
from perceptune.utils.atomic_io import write_json, write_text
from perceptune.utils.distributed import World
from perceptune.utils.launch_environment import read_launch
from perceptune.utils.markdown import markdown_table
from perceptune.utils.tensors import read_numbers
from perceptune.utils.timing import Contender, machine, measure

NAME = "timing"  # of the files
ROUNDS, STEPS = 5, 4  # measured rounds; steps in each, unless a number of samples is given
STANDARDIZED = 16  # media for statistics: their values do not affect the time
CACHED, RECOMPUTED = "cached", "recomputed"


class TimedRow:
    """A model of the comparison with its data, as in training."""

    def __init__(self, entry: PlannedRow, recipe: Recipe, folder: Path) -> None:
        world = World()
        self.entry, self.config = entry, recipe.train
        self.model = build_to_train(recipe, lambda model: model.place(world))
        task = make_task(recipe)
        self.feed = BatchLoader(self.model, task, folder, world)
        self.objective = make_objective(self.model, task, self.feed.samples, world)
        self.optimizer = MethodOptimizer(self.model.method, recipe.train, self.feed.steps)
        wanted = STANDARDIZED if self.model.method.standardizes else 0
        self._kept, self._anew = self.model.stores, {name: _without(store) for name, store in self.model.stores.items()}
        start = time.perf_counter()
        self.feed.precompute(wanted)
        self.features_s = time.perf_counter() - start
        if wanted:
            self.model.fit_statistics(list(self.feed.one_sample_per_medium(wanted)))

    def contenders(self) -> list[Contender]:
        """Return the row with cached features and with features recomputed at each step; only these if trained."""
        kinds = [RECOMPUTED] if self.model.method.trains_encoders else [CACHED, RECOMPUTED]
        return [
            Contender(
                f"{self.entry.label}, features {kind}", kind, partial(self._steps, kind, self.feed.steps),
                warm_up=partial(self._steps, kind, 1), times=self.feed.steps,
            )
            for kind in kinds
        ]  # fmt: skip

    def _steps(self, kind: str, steps: int) -> None:
        self.model.stores = self._kept if kind == CACHED else self._anew
        for step in range(steps):
            self._step(step)

    def _step(self, step: int) -> None:
        """Run a step of the training loop."""
        self.optimizer.set_lr(step)
        torch.manual_seed(step)
        losses, tokens, _ = self.objective.add_gradients(self.feed.batches(step))
        self.optimizer.scale_grads(max(tokens, 1))
        read_numbers([*losses, self.optimizer.clip()])  # synchronises with a GPU
        self.optimizer.step(step)


def time_plan(
    plan: Plan, out: Path, say: Callable[[str], None], *, rounds: int = ROUNDS, samples: int | None = None
) -> dict[str, Any]:
    """Time every row with its first setting and seed; write `timing.json` and `timing.md` into `out`.

    `rows` have `step_s` (median over the rounds of a step's seconds), `to_samples_s` (the same for the steps that
    `samples` take), `samples_per_s` and `ratio`, of the step to the first row's with the same `features`: `cached` or
    `recomputed`. `features_s` is the one-time cost of caching them.
    """
    if rounds < 1:
        raise UserError(f"--rounds: give a number above 0 (given: {rounds})")
    if read_launch(meeting=False).size > 1:
        raise UserError("a comparison runs in one process: start it without a launcher")
    timed: list[TimedRow] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for entry in plan.entries:
            say(f"loading {entry.label}")
            timed.append(TimedRow(entry, _short(plan, entry, samples), folder))
            stack.enter_context(closing(timed[-1].feed))
        measured = measure([one for row in timed for one in row.contenders()], rounds, NAME)
    config, steps = timed[0].config, timed[0].feed.steps
    total = steps * config.batch_size * config.accumulate
    result = {
        "samples": total, "steps": steps, "batch_size": config.batch_size, "accumulate": config.accumulate,
        "rounds": rounds, "machine": machine(), "rows": _rows(timed, measured, total),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{NAME}.json", result)
    heading, *lines = timing_cells(result)
    write_text(out / f"{NAME}.md", "\n".join([*markdown_table(heading, lines), "", timing_terms(result)]) + "\n")
    return result


def _short(plan: Plan, entry: PlannedRow, samples: int | None) -> Recipe:
    """Return the row's recipe, cut to the steps of one round."""
    config = entry.recipe.train
    if config.batch_tokens is not None:
        raise UserError("train.batch_tokens: batches of unequal size cannot be timed; use `train.batch_size`")
    steps = STEPS if samples is None else math.ceil(samples / (config.batch_size * config.accumulate))
    if steps < 1:
        raise UserError(f"--samples: give a number above 0 (given: {samples})")
    keys = {"train.steps": steps, "train.standardize_samples": STANDARDIZED}
    return entry.with_({**entry.settings[0], **keys}, plan.seeds[0])


def _without(store: FeatureStore) -> FeatureStore:
    """Return a store of the same features without a cache."""
    off = store.cache.model_copy(update={"features": "off"})
    return FeatureStore(store.encoder, store.levels, store.tokens, off, megabytes=0, views=store.views)


def _rows(timed: list[TimedRow], measured: list[dict[str, Any]], samples: int) -> list[dict[str, Any]]:
    first: dict[str, float] = {}
    by_name = {row["name"]: row for row in measured}
    rows = []
    for one in timed:
        for contender in one.contenders():
            found, kind, steps = by_name[contender.name], contender.kind, contender.times
            step = found["median_s"]
            rows.append({
                "label": one.entry.label, "trained": one.entry.trained, "share": one.entry.share, "features": kind,
                "step_s": step, "step_min_s": found["min_s"], "to_samples_s": step * steps,
                "samples_per_s": samples / (step * steps), "ratio": step / first.setdefault(kind, step),
                "features_s": one.features_s if kind == CACHED else None, "steps_s": found["seconds"],
            })  # fmt: skip
    return rows


def timing_cells(result: Mapping[str, Any]) -> list[list[str]]:
    """Return heading and rows as text."""
    to = f"s to {result['samples']} samples"
    heading = ["", "trained", "share", "features", "s a step", "ratio", "samples/s", to]
    return [heading, *([
        row["label"], f"{row['trained']:,}", f"{100 * row['share']:.3f} %", row["features"], f"{row['step_s']:.4f}",
        f"{row['ratio']:.2f}", f"{row['samples_per_s']:.1f}", f"{row['to_samples_s']:.2f}",
    ] for row in result["rows"])]  # fmt: skip


def timing_terms(result: Mapping[str, Any]) -> str:
    """Describe how the numbers were made, in a sentence."""
    once = max((row["features_s"] or 0.0 for row in result["rows"]), default=0.0)
    each = f"{result['steps']} steps of {result['batch_size'] * result['accumulate']} samples"
    first = result["rows"][0]["label"]
    made = f"Medians of {result['rounds']} rounds of {each}, rows in turns; ratios to `{first}`"
    threads = result["machine"]["threads"]
    return f"{made}; {threads} threads. Keeping the features took {once:.2f} s once, which is in no row."
