"""Images enter an encoder as transformers' own processors prepare them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from encoder_cases import photo
from perceptune.encoders.base import load_encoder
from perceptune.errors import UserError

PROCESSORS = [
    ("vit", ViTImageProcessorPil(size={"height": 32, "width": 48})),
    ("vit", ViTImageProcessorPil(do_normalize=False)),
    ("vit", ViTImageProcessorPil(do_rescale=False)),
    ("deit", DeiTImageProcessorPil()),
    ("dinov2", BitImageProcessorPil(size={"shortest_edge": 256})),
    ("dinov2", BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 64, "width": 56})),
    ("clip", CLIPImageProcessorPil()),
    ("siglip", SiglipImageProcessorPil()),
]


@pytest.mark.parametrize("in_processor_config", [False, True])
@pytest.mark.parametrize(("name", "processor"), PROCESSORS)
def test_images_enter_as_transformers_own_processors_prepare_them(
    copy: Callable[[str], Path], name: str, processor: Any, in_processor_config: bool
) -> None:
    folder = copy(name)
    processor.save_pretrained(folder)
    if in_processor_config:  # what transformers 5 writes for models of several modalities
        file = folder / "preprocessor_config.json"
        settings = {"image_processor": json.loads(file.read_text()), "processor_class": "CLIPProcessor"}
        file.unlink()
        (folder / "processor_config.json").write_text(json.dumps(settings))
    encoder = load_encoder(folder, meta=True)
    for width, height in [(224, 224), (301, 217), (123, 400), (20, 31), (1, 3)]:
        data = photo(width, height)
        expected = processor(Image.open(BytesIO(data)), return_tensors="np")["pixel_values"][0]
        loaded = encoder.load(data)
        assert loaded.dtype == torch.float32
        np.testing.assert_allclose(loaded.numpy(), expected, rtol=0, atol=1e-5)


DEFAULTS = [
    ("vit", ViTImageProcessorPil(size={"height": 32, "width": 32})),
    ("deit", DeiTImageProcessorPil(size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32})),
    (
        "dinov2",
        BitImageProcessorPil(
            size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
        ),
    ),
    ("clip", CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})),
    ("siglip", SiglipImageProcessorPil(size={"height": 32, "width": 32})),
]


@pytest.mark.parametrize(("name", "processor"), DEFAULTS)
def test_a_checkpoint_without_preprocessor_gets_its_familys(
    copy: Callable[[str], Path], name: str, processor: Any
) -> None:
    folder = copy(name)
    (folder / "preprocessor_config.json").unlink()
    data = photo(301, 217)
    expected = processor(Image.open(BytesIO(data)), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(load_encoder(folder, meta=True).load(data).numpy(), expected, rtol=0, atol=1e-5)


def test_settings_written_by_old_releases_are_understood(copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 64, "crop_size": 56, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    shown = load_encoder(folder, meta=True).preprocessing()
    assert (shown["resize"], shown["crop"], shown["size"]) == (64, [56, 56], [56, 56])


def test_a_size_without_a_crop_is_what_comes_out(copy: Callable[[str], Path]) -> None:
    folder = copy("dinov2")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 40, "width": 40}}))
    shown = load_encoder(folder, meta=True).preprocessing()
    assert (shown["resize"], shown["crop"]) == ([40, 40], None)


def test_preprocessing_can_be_replaced(checkpoints: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("dinov2")
    BitImageProcessorPil(size={"shortest_edge": 256}).save_pretrained(folder)

    def shown(**changes: Any) -> list[Any]:
        settings = load_encoder(folder, meta=True, **changes).preprocessing()
        assert json.loads(json.dumps(settings)) == settings
        return [settings["resize"], settings["crop"], settings["size"]]

    assert shown() == [256, [224, 224], [224, 224]]
    assert shown(size=112) == [128, [112, 112], [112, 112]]
    assert shown(size=112, resize="crop") == [112, [112, 112], [112, 112]]
    assert shown(size=112, resize="squash") == [[112, 112], None, [112, 112]]
    assert shown(resize="squash") == [[224, 224], None, [224, 224]]
    assert load_encoder(folder, meta=True, size=112).load(photo(99, 50)).shape == (3, 112, 112)
    changed = load_encoder(folder, meta=True, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)).preprocessing()
    assert (changed["mean"], changed["std"]) == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])


def test_an_open_size_is_an_error_until_it_is_set(copy: Callable[[str], Path]) -> None:
    folder = copy("vit")
    for settings in ({"size": {"shortest_edge": 32}}, {"size": {"height": 8, "width": 8}, "do_resize": False}):
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match="leaves the size open"):
            load_encoder(folder, meta=True)
        assert load_encoder(folder, meta=True, size=16, resize="crop").preprocessing()["size"] == [16, 16]


def test_a_size_between_patches_is_an_error(checkpoints: Path) -> None:
    with pytest.raises(UserError, match=r"`size` 35 is not a multiple .* 8 pixels; use 32 or 40"):
        load_encoder(checkpoints / "vit", size=35)


def test_loading_from_threads_gives_the_same_tensors(checkpoints: Path) -> None:
    encoder, data = load_encoder(checkpoints / "vit", meta=True), [photo(30 + i, 40) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for one, many in zip(map(encoder.load, data), pool.map(encoder.load, data), strict=True):
            assert torch.equal(one, many)
