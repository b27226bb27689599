"""Word pre-training: before the first step, mappers alone are trained towards the LM's states of the answers' words."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from perceptune.config.word_pretraining import WordPretrainingConfig
from perceptune.data.lazy_rows import select
from perceptune.errors import UserError
from perceptune.models.slots.model import SlotModel
from perceptune.models.slots.word_targets import WordTargets, find_words, word_targets
from perceptune.models.text_format import Batch
from perceptune.training.batch_loader import BatchLoader
from perceptune.utils.run_log import progress
from perceptune.utils.tensors import move

KEY = "train.pretrain_words"


def pretrain_words(loader: BatchLoader) -> None:
    """Train the mappers as `train.pretrain_words` says, on the first batches of the training; without it do nothing.

    Every process does all of it. Raises `UserError` for a method without mappers, and for answers without words.
    """
    config, model = loader.config.pretrain_words, loader.model
    if config is None:
        return
    if loader.world.is_sharded:
        raise UserError(f"{KEY}: not with FSDP")
    found = model.method.mappers() if isinstance(model, SlotModel) else None
    maps = [] if found is None else [parameter for parameter in found.parameters() if parameter.requires_grad]
    if not isinstance(model, SlotModel) or not maps:
        raise UserError(f"{KEY}: method `{model.recipe.method.name}` trains no mappers of slots")
    order = torch.randperm(len(loader.samples), generator=torch.Generator().manual_seed(loader.seed))
    targets = word_targets(model, find_words(select(loader.samples, order.tolist()), config.occurrences))
    adam = torch.optim.AdamW(maps, lr=config.lr, weight_decay=0.0)
    model.set_dropout(on=True)
    try:
        with progress(loader.word_batches, "words") as bar:
            for number, (batch, answers) in enumerate(loader.whole_batches(loader.word_batches)):
                torch.manual_seed((loader.seed << 32) + number & (2**63 - 1))  # for dropout
                loss = _step(model, adam, maps, batch, answers, targets, config)
                bar.advance(note=f"loss {loss:.3f}")
    finally:
        model.set_dropout(on=False)


def _step(
    model: SlotModel, adam: torch.optim.Optimizer, maps: Sequence[nn.Parameter], batch: Batch, answers: Sequence[str],
    targets: WordTargets, config: WordPretrainingConfig,
) -> float:  # fmt: skip
    """Take a step of the mappers, unless the batch has no media or no words; return its loss."""
    features = {name: replace(one, values=move(one.values, model.device)) for name, one in batch.features.items()}
    slots = [slot for slot in model.method.build_slots(features, batch.n_samples) if slot.name in features]
    loss = targets.loss(slots, answers, config.temperature)
    if loss is None:
        return 0.0
    if not math.isfinite(loss.item()):
        raise UserError(f"{KEY}: the loss is {loss.item()}: lower `{KEY}.lr`, or use `train.precision: float32`")
    loss.backward(inputs=maps)
    adam.step()
    adam.zero_grad(set_to_none=True)
    return loss.item()
