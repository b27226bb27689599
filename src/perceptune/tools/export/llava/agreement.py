"""Comparison of a run with what was made of it, on a made-up image, before it is written."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perceptune.errors import UserError
from perceptune.models.slots.model import SlotModel
from perceptune.types import IN_TEXT, Features, Sample

TOLERANCE = 1e-4  # of logits, relative to the greatest one if that is above 1
_QUESTION = "What is this?"
# Width and height: neither square nor near the encoders' sizes, one of them smaller.
_SIZES = ((53, 40), (301, 452))


@torch.no_grad()
def require_agreement(model: SlotModel, made: Any, processor: Any) -> None:
    """Raise `UserError` unless prompt, pixels and logits are those of the run, with the first difference."""
    token = processor.image_token_id
    for size in _SIZES:
        image = _noise(size)
        sample = Sample("image", {"image": _png(image)}, _QUESTION)
        chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": _QUESTION}]}]
        batch = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        ids = [token if own == IN_TEXT else own for own in model.text.prompt_ids(sample)]
        if batch["input_ids"][0].tolist() != ids:
            _refuse(f"its tokenizer gives {batch['input_ids'][0].tolist()} for the prompt, and the run has {ids}")
        ours, pixels = _logits(model, sample)
        if (apart := _distance(batch["pixel_values"], pixels)) > TOLERANCE:
            _refuse(f"its image processor gives pixels that are {apart:.1g} away from those of the run")
        theirs = made(**batch).logits[0, :, : ours.shape[1]]
        if (apart := _distance(theirs, ours) / max(1.0, float(ours.abs().max()))) > TOLERANCE:
            kind = type(model.lm.model).__name__
            _refuse(f"its logits are {apart:.1g} away from those of the run, whose LM is {kind}")


def _refuse(why: str) -> None:
    raise UserError(f"LLaVA's layout has no place for this run: tried on an image, {why}")


def _logits(model: SlotModel, sample: Sample) -> tuple[Tensor, Tensor]:
    """Return logits (T, vocabulary) and pixels (1, 3, H, W), with features that went through no cache's dtype."""
    encoder: Any = model.encoders["image"]
    method = model.method
    pixels = encoder.load(sample.list_media("image")[0])[None]
    values = encoder(pixels, method.levels("image"), method.tokens("image"))
    prompt = model.prompt([sample], {"image": Features(values, torch.ones(1, dtype=torch.bool))})
    return model.lm(prompt.ids, prompt.mask, prompt.slots)[0], pixels


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the greatest difference; infinity for other shapes."""
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


def _noise(size: tuple[int, int]) -> Image.Image:
    """Return an image of coloured noise, the same every time."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
