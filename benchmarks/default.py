"""The embedded models at the demo's recipe: our fast path against the plain path of the same recipe."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from benchmarks.steps import mean_loss, training_step
from perceptune.config.recipe import Recipe, load_recipe
from perceptune.data.build_task import make_task
from perceptune.data.subset import subset
from perceptune.models.build import build_to_train, settle
from perceptune.models.slots.model import SlotModel
from perceptune.models.text_format import Batch
from perceptune.types import Features, Sample
from perceptune.utils.timing import Contender, measure

BATCHES = 4  # different batches that the rows go round
FAST, PLAIN = "train fast path", "train plain path"
RATIO = "fast_vs_plain"


def compare_precisions(precisions: Sequence[str], recipe: Recipe | str = "demo", *, rounds: int) -> dict[str, Any]:
    """Steps of the fast path in several `train.precision`, in turns.

    `ratios`: seconds of each to those of the first (`auto_vs_float32`), by the clock and in processor seconds.
    """
    recipe = load_recipe(recipe)
    contenders = []
    for name in precisions:
        settled, _ = settle(load_recipe(recipe, [f"train.precision={name}"]))
        model, groups = _model(settled)
        chosen = "" if name == settled.train.precision else f" ({settled.train.precision})"
        contenders.append(_fast(model, groups, f"{FAST} {name}{chosen}"))
    rows = measure(contenders, rounds)
    ratios = {}
    for name, row in zip(precisions[1:], rows[1:], strict=True):
        ratio = f"{name}_vs_{precisions[0]}"
        ratios[ratio] = row["median_s"] / rows[0]["median_s"]
        ratios[f"{ratio}_cpu"] = row["median_cpu_s"] / rows[0]["median_cpu_s"]
    return {"ratios": ratios, "rows": rows}


def compare_paths(recipe: Recipe | str = "demo", *, rounds: int, only_plain: bool = False) -> dict[str, Any]:
    """`ratios` (`fast_vs_plain`, in samples/s) and `rows`.

    Fast: encoder features cached and lower-layer states in memory, as in every epoch but the first. Plain: media opened
    and encoded at each step, all LM layers on every text, all columns (`SlotModel.use_reference_path`).
    """
    model, groups = _model(load_recipe(recipe))
    contenders = [_plain(model, groups)]
    if not only_plain:
        contenders.insert(0, _fast(model, groups))
    rows = measure(contenders, rounds)
    by_name = {row["name"]: row["samples_per_s"] for row in rows}
    ratios = {} if only_plain else {RATIO: by_name[FAST] / by_name[PLAIN]}
    return {"ratios": ratios, "rows": rows}


def _model(recipe: Recipe) -> tuple[SlotModel, list[list[Sample]]]:
    """As a training has it, with its batches."""
    model = build_to_train(recipe)
    assert isinstance(model, SlotModel)
    samples = _training_samples(recipe)
    size = recipe.train.batch_size
    model.precompute(samples)
    model.fit_statistics(samples)
    return model, [samples[start : start + size] for start in range(0, len(samples), size)]


def _training_samples(recipe: Recipe) -> list[Sample]:
    task = make_task(recipe)
    rows = task.samples(task.splits[0])
    return [rows[i] for i in subset(len(rows), BATCHES * recipe.train.batch_size, recipe.seed)]


def _fast(model: SlotModel, groups: Sequence[Sequence[Sample]], name: str = FAST) -> Contender:
    turn = cycle(groups)
    return _round(name, model, groups, lambda: mean_loss(model, model.collate(next(turn))))


def _plain(model: SlotModel, groups: Sequence[Sequence[Sample]]) -> Contender:
    turn = cycle(groups)

    def loss() -> Tensor:
        group = next(turn)
        return mean_loss(model, Batch(model.tokens(group), encode_anew(model, group)), plain=True)

    return _round(PLAIN, model, groups, loss)


@torch.no_grad()
def encode_anew(model: SlotModel, samples: Sequence[Sample]) -> dict[str, Features]:
    """Features without any cache: every medium is opened and encoded, in one batch. All samples have all media."""
    encoded = {}
    encoders: Mapping[str, Any] = dict(model.encoders.items())
    for modality, encoder in encoders.items():
        inputs = torch.stack([encoder.load(sample.media[modality]) for sample in samples])
        values = encoder(inputs, model.method.levels(modality), model.method.tokens(modality))
        encoded[modality] = Features(values.float(), torch.ones(len(samples), dtype=torch.bool))
    return encoded


def _round(name: str, model: SlotModel, groups: Sequence[Sequence[Sample]], loss: Callable[[], Tensor]) -> Contender:
    """One run = every batch once, so that a round does not depend on which texts are longest."""
    step = training_step(loss, list(model.method.parameters()))
    return Contender(
        name, "train", lambda: [step() for _ in range(BATCHES)], samples=len(groups[0]), times=BATCHES
    )  # fmt: skip
