"""The default encoder as an InstructBLIP's ViT. Skipped where the default models have not been fetched."""

from __future__ import annotations

import pytest
import torch
from transformers import Dinov2Model

from perceptune.models.instructblip.create import vision_of
from perceptune.utils.downloads import present


@pytest.mark.parametrize("size", [112, 224])
def test_the_default_encoder_is_converted_exactly(size: int) -> None:
    folder = present("dinov2-small")
    if folder is None:
        pytest.skip("the default image encoder has not been fetched (`perceptune assets`)")
    tower = Dinov2Model.from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected, found = tower(pixels).last_hidden_state, vision_of(tower, size)(pixels).last_hidden_state
    assert expected.std() > 1
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
