"""Models of transformers' kind on dwarfs, and what ours give for the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import perceptune
from perceptune.data.build_task import make_task
from perceptune.hf import PerceptuneForConditionalGeneration
from perceptune.models.hf.conversion import config_of
from perceptune.models.slots.model import SlotModel
from perceptune.types import Sample


def scrambled(recipe: dict[str, Any], seed: int = 1) -> PerceptuneForConditionalGeneration:
    """A model whose method is far from any neutral start."""
    model = perceptune.build(recipe)
    assert isinstance(model, SlotModel)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.fit_statistics(list(make_task(model.recipe).samples("train")))
    return PerceptuneForConditionalGeneration(config_of(model), model).eval()


def messages_of(sample: Sample, answer: str | None = None) -> list[dict[str, Any]]:
    """A sample as a chat; media stand before its question."""
    media = [{"type": modality, "path": str(medium)} for modality, medium in sample.iter_media()]
    chat: list[dict[str, Any]] = [{"role": "user", "content": [*media, {"type": "text", "text": sample.prompt}]}]
    return chat if answer is None else [*chat, {"role": "assistant", "content": answer}]


@torch.no_grad()
def asked_of(model: SlotModel, samples: Sequence[Sample], answers: Tensor) -> Tensor:
    """Our logits (B, N, vocabulary) of each token of answers (B, N), read in one forward pass."""
    prompt = model.prompt(samples)
    ids = torch.cat([prompt.ids, answers], 1)
    mask = nn.functional.pad(prompt.mask, (0, answers.shape[1]), value=1)
    logits: Tensor = model.lm(ids, mask, prompt.slots)
    return logits[:, prompt.ids.shape[1] - 1 : -1]
