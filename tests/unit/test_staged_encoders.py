"""Image encoders in stages against transformers, on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

import rows
from encoder_cases import STAGED_CASES, photo
from perceptune.config.registry import leaves
from perceptune.encoders.base import Encoder, load_encoder
from perceptune.errors import UserError
from perceptune.methods.slots.base import EncoderShape

WIDTHS = {"swin": [16, 32, 32], "swinv2": [16, 32, 32]}


def pictures(n: int, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(encoder: Encoder, x: Tensor, levels: list[int], tokens: Any = "cls") -> Tensor:
    with torch.no_grad():
        out: Tensor = encoder(x, levels, tokens)
    return out


def test_every_family_is_here() -> None:
    kinds = leaves("encoders")["staged"].module.ARCHITECTURES
    assert {config.model_type for _, _, config in STAGED_CASES.values()} == set(kinds)


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("name", STAGED_CASES)
def test_levels_are_the_means_of_the_stages(checkpoints: Path, name: str, size: int) -> None:
    encoder, x = load_encoder(checkpoints / name, size=size), pictures(2, size)
    hf = getattr(transformers, STAGED_CASES[name][0]).from_pretrained(checkpoints / name).eval()
    extra = {"interpolate_pos_encoding": True} if "swin" in name else {}
    with torch.no_grad():
        out = hf(x, output_hidden_states=True, **extra)
    states = out.hidden_states[-encoder.n_layers :]
    means = [state.mean(1) if state.dim() == 3 else state.mean((2, 3)) for state in states]
    got = features(encoder, x, [0, 1, 2])
    assert (got.shape, encoder.n_layers) == ((2, 3, 1, encoder.dim), 3)
    widths = WIDTHS.get(name.split("-")[0], [8, 12, 20])
    for level in (0, 1):
        torch.testing.assert_close(got[:, level, 0, : widths[level]], means[level])
        assert not got[:, level, 0, widths[level] :].any()
    torch.testing.assert_close(got[:, 2, 0], out.pooler_output.flatten(1))
    torch.testing.assert_close(features(encoder, x, [2, 0]), got[:, [2, 0]])


@pytest.mark.parametrize("name", STAGED_CASES)
def test_a_batch_gives_what_each_image_gives_alone(checkpoints: Path, name: str) -> None:
    encoder, x = load_encoder(checkpoints / name), pictures(3)
    alone = torch.cat([features(encoder, row[None], [0, 1, 2]) for row in x])
    torch.testing.assert_close(features(encoder, x, [0, 1, 2]), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STAGED_CASES)
def test_meta_counts_the_parameters_of_the_real_thing(checkpoints: Path, name: str) -> None:
    real, meta = load_encoder(checkpoints / name), load_encoder(checkpoints / name, meta=True)
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert (meta.n_layers, meta.dim) == (real.n_layers, real.dim)
    assert not any(module.training for module in real.train().modules()), "batch statistics stay as they are"
    assert len(real.fingerprint) == 64


def test_what_stages_cannot_give_is_an_error(checkpoints: Path) -> None:
    encoder = load_encoder(checkpoints / "convnext")
    with pytest.raises(UserError, match="gives one pooled token a level; use `cls`"):
        features(encoder, pictures(1), [0], "all")
    with pytest.raises(UserError, match="no level 3: its blocks are 0 to 2"):
        features(encoder, pictures(1), [3])
    with pytest.raises(UserError, match=r"convnext: `size` 8 is too small for its stages; use 16 or more"):
        load_encoder(checkpoints / "convnext", size=8)


def test_fewer_stages_than_levels_is_an_error(checkpoints: Path) -> None:
    encoder = load_encoder(checkpoints / "resnet")
    shape = EncoderShape(encoder.n_layers, encoder.dim)
    assert rows.row("epalm", "opt", shapes={"image": shape}, n_levels=3, first=0).method is not None
    with pytest.raises(UserError, match=r"method\.n_levels is 4, but the image encoder has 3 layers"):
        rows.row("epalm", "opt", shapes={"image": shape}, n_levels=4, first=0)


@pytest.mark.parametrize("edge", [224, 384])
def test_convnext_cuts_as_its_own_processor_does(copy: Callable[[str], Path], edge: int) -> None:
    folder, processor = copy("convnext"), ConvNextImageProcessorPil(size={"shortest_edge": edge})
    processor.save_pretrained(folder)
    encoder = load_encoder(folder, meta=True)
    for width, height in [(301, 217), (123, 400)]:
        data = photo(width, height)
        expected = processor(Image.open(BytesIO(data)), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(encoder.load(data).numpy(), expected, rtol=0, atol=1e-5)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": edge}))  # as old releases wrote it
    assert load_encoder(folder, meta=True).preprocessing() == encoder.preprocessing()
