"""Every encoder leaf against transformers: its forward pass, its image processors; tiny random models."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from perceptune.encoders.base import Encoder, ViTEncoder, load_encoder
from perceptune.errors import UserError
from perceptune.plugins import leaves

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IDS = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}


def full(kind: str) -> dict[str, Any]:
    """A config with both towers."""
    return {
        "text_config": {"model_type": f"{kind}_text_model", **TEXT, **IDS},
        "vision_config": {"model_type": f"{kind}_vision_model", **SIZE, "intermediate_size": 64},
    }


# The name of a case, the class that holds the tower, the class whose checkpoint is read, its config.
CASES: dict[str, tuple[str, str, Any]] = {
    "vit": ("ViTModel", "ViTModel", transformers.ViTConfig(**SIZE, intermediate_size=64)),
    "vit-classifier": (
        "ViTModel",
        "ViTForImageClassification",
        transformers.ViTConfig(**SIZE, intermediate_size=64),
    ),
    "deit": ("DeiTModel", "DeiTModel", transformers.DeiTConfig(**SIZE, intermediate_size=64)),
    "dinov2": ("Dinov2Model", "Dinov2Model", transformers.Dinov2Config(**SIZE)),
    "dinov2-swiglu": ("Dinov2Model", "Dinov2Model", transformers.Dinov2Config(**SIZE, use_swiglu_ffn=True)),
    "dinov2-registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersModel",
        transformers.Dinov2WithRegistersConfig(**SIZE),
    ),
    "clip": ("CLIPVisionModel", "CLIPModel", transformers.CLIPConfig(**full("clip"))),
    "clip-tower": (
        "CLIPVisionModel",
        "CLIPVisionModel",
        transformers.CLIPVisionConfig(**SIZE, intermediate_size=64),
    ),
    "clip-projection": (
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
        transformers.CLIPVisionConfig(**SIZE, intermediate_size=64),
    ),
    "siglip": ("SiglipVisionModel", "SiglipModel", transformers.SiglipConfig(**full("siglip"))),
    "siglip-tower": (
        "SiglipVisionModel",
        "SiglipVisionModel",
        transformers.SiglipVisionConfig(**SIZE, intermediate_size=64),
    ),
}
SPECIAL_TOKENS = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2-registers": 5, "clip": 1, "siglip": 0}
SQUASHED = {
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per case, all weights random and none at its initial zero or one."""
    root = tmp_path_factory.mktemp("checkpoints")
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    for name, (_, saved, config) in CASES.items():
        model = getattr(transformers, saved)(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(SQUASHED))
    return root


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that a test may damage."""
    return lambda name: Path(shutil.copytree(checkpoints / name, tmp_path / "copy"))


def reference(folder: Path, name: str) -> Any:
    """The tower as transformers loads it by itself."""
    return getattr(transformers, CASES[name][0]).from_pretrained(folder).eval()


def features(encoder: Encoder, x: Tensor, levels: list[int], tokens: str = "cls") -> Tensor:
    with torch.no_grad():
        out: Tensor = encoder(x, levels, tokens)
    return out


def pictures(n: int, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("name", CASES)
def test_levels_are_the_normed_hidden_states_of_transformers(checkpoints: Path, name: str, size: int) -> None:
    encoder = load_encoder(checkpoints / name, size=size)
    assert isinstance(encoder, ViTEncoder)
    hf, x = reference(checkpoints / name, name), pictures(2, size)
    extra = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        states = hf(x, output_hidden_states=True, **extra).hidden_states
        norm = hf.get_submodule(encoder.NORM)
        expected = torch.stack([norm(states[level + 1]) for level in (0, 2)], dim=1)
    everything = features(encoder, x, [0, 2], "all")
    torch.testing.assert_close(everything, expected)
    assert everything.shape == (2, 2, encoder.n_tokens, encoder.dim)
    assert encoder.n_tokens == (size // 8) ** 2 + encoder.n_special
    assert encoder.n_special == SPECIAL_TOKENS.get(name, SPECIAL_TOKENS[name.split("-")[0]])
    pooled = expected.mean(2, keepdim=True) if name.startswith("siglip") else expected[:, :, :1]
    torch.testing.assert_close(features(encoder, x, [0, 2]), pooled)


def test_the_last_level_is_the_models_own_output(checkpoints: Path) -> None:
    encoder, hf = load_encoder(checkpoints / "dinov2"), reference(checkpoints / "dinov2", "dinov2")
    with torch.no_grad():
        expected = hf(pictures(2)).pooler_output
    torch.testing.assert_close(features(encoder, pictures(2), [2])[:, 0, 0], expected)


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_a_batch_gives_what_each_image_gives_alone(checkpoints: Path, name: str) -> None:
    encoder, x = load_encoder(checkpoints / name), pictures(5)
    for tokens in ("cls", "all"):
        alone = torch.cat([features(encoder, row[None], [0, 1, 2], tokens) for row in x])
        torch.testing.assert_close(features(encoder, x, [0, 1, 2], tokens), alone, rtol=0, atol=1e-6)


def test_levels_keep_their_order_and_upper_blocks_are_not_run(checkpoints: Path) -> None:
    encoder, x = load_encoder(checkpoints / "vit"), pictures(1)
    assert isinstance(encoder, ViTEncoder)
    both = features(encoder, x, [0, 1])
    torch.testing.assert_close(features(encoder, x, [1, 0]), both.flip(1), rtol=0, atol=0)

    def run(*_: object) -> None:
        raise AssertionError("block 2 was run")

    encoder.blocks[2].register_forward_pre_hook(run)
    torch.testing.assert_close(features(encoder, x, [0, 1]), both, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("siglip")])
def test_the_highest_block_runs_for_cls_alone(checkpoints: Path, name: str) -> None:
    encoder, x = load_encoder(checkpoints / name), pictures(3)
    assert isinstance(encoder, ViTEncoder)
    expected = features(encoder, x, [0, 2], "all")[:, :, :1]
    widths = []
    encoder.blocks[2].mlp.register_forward_hook(lambda module, given, out: widths.append(out.shape[1]))
    torch.testing.assert_close(features(encoder, x, [0, 2]), expected, rtol=0, atol=1e-5)
    assert widths == [1]


@pytest.mark.parametrize("levels", [[3], [-1], [0, 12], []])
def test_a_level_outside_the_encoder_is_an_error(checkpoints: Path, levels: list[int]) -> None:
    encoder = load_encoder(checkpoints / "vit")
    with pytest.raises(UserError, match="0 to 2" if levels else "no encoder level"):
        features(encoder, pictures(1), levels)


def test_frozen_and_in_evaluation_mode_for_good() -> None:
    config = transformers.ViTConfig(**SIZE, hidden_dropout_prob=0.5)
    family = leaves("encoders")["vit"].module.ENCODER
    encoder = family(transformers.ViTModel(config, add_pooling_layer=False), _squash())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert encoder.train(True) is encoder
    nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules())
    x = pictures(1)
    torch.testing.assert_close(features(encoder, x, [2]), features(encoder, x, [2]), rtol=0, atol=0)


def _squash() -> Any:
    from perceptune.media import ImageTransform

    return ImageTransform((32, 32), None, 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def test_half_precision_weights_give_float32_features(checkpoints: Path) -> None:
    encoder = load_encoder(checkpoints / "vit", dtype=torch.bfloat16)
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    out = features(encoder, pictures(1), [2])
    assert out.dtype == torch.float32
    exact = features(load_encoder(checkpoints / "vit"), pictures(1), [2])
    assert 0 < (out - exact).abs().max() < 0.2


def test_the_fingerprint_is_of_weights_config_and_preprocessing(checkpoints: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("vit")
    original = load_encoder(checkpoints / "vit").fingerprint()
    assert len(bytes.fromhex(original)) == 32
    assert load_encoder(folder).fingerprint() == original  # not of the folder's name
    others = {
        load_encoder(folder, size=48).fingerprint(),
        load_encoder(folder, image_mean=(0.4, 0.5, 0.6)).fingerprint(),
        load_encoder(folder, resize="crop").fingerprint(),
        load_encoder(folder, dtype=torch.bfloat16).fingerprint(),
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "5.0.0", "dtype": "float16"}))
    assert load_encoder(folder).fingerprint() == original
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    others.add(load_encoder(folder).fingerprint())
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.cls_token"][0, 0, 0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    others.add(load_encoder(folder).fingerprint())
    assert len(others - {original}) == 6


def test_parts_never_used_do_not_enter_the_fingerprint(checkpoints: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"].add_(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(folder).fingerprint() == load_encoder(checkpoints / "clip").fingerprint()


@pytest.mark.parametrize("name", CASES)
def test_meta_counts_the_parameters_of_the_real_thing(checkpoints: Path, tmp_path: Path, name: str) -> None:
    real = load_encoder(checkpoints / name)
    config = tmp_path / "any-name.json"
    shutil.copy(checkpoints / name / "config.json", config)
    (tmp_path / "folder").mkdir()
    shutil.copy(config, tmp_path / "folder" / "config.json")
    for source in (config, tmp_path / "folder"):
        meta = load_encoder(source, meta=True)
        assert {p.device.type for p in meta.parameters()} == {"meta"}
        assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
        assert (meta.n_layers, meta.dim) == (3, 32)
    unused = {"pooler", "classifier", "head", "text_model", "mask_token"} - {
        "mask_token" if "registers" in name else ""
    }
    assert not unused & {part for key in real.state_dict() for part in key.split(".")}


# --- preprocessing

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


def photo(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX).save(buffer, "PNG")
    return buffer.getvalue()


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
    (
        "deit",
        DeiTImageProcessorPil(size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}),
    ),
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
    old = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 64,
        "crop_size": 56,
        "do_center_crop": True,
    }
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
    changed = load_encoder(folder, meta=True, image_mean=(0.1, 0.2, 0.3), image_std=(1.0, 2.0, 3.0)).preprocessing()
    assert (changed["mean"], changed["std"]) == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])


def test_an_open_size_is_an_error_until_it_is_set(copy: Callable[[str], Path]) -> None:
    folder = copy("vit")
    for settings in (
        {"size": {"shortest_edge": 32}},
        {"size": {"height": 8, "width": 8}, "do_resize": False},
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match="leaves the size open"):
            load_encoder(folder, meta=True)
        assert load_encoder(folder, meta=True, size=16, resize="crop").preprocessing()["size"] == [16, 16]


def test_a_size_between_patches_is_an_error(checkpoints: Path) -> None:
    with pytest.raises(UserError, match=r"`size` 35 is no multiple .* 8 pixels; use 32 or 40"):
        load_encoder(checkpoints / "vit", size=35)


def test_loading_from_threads_gives_the_same_tensors(checkpoints: Path) -> None:
    encoder, data = load_encoder(checkpoints / "vit", meta=True), [photo(30 + i, 40) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for one, many in zip(map(encoder.load, data), pool.map(encoder.load, data), strict=True):
            assert torch.equal(one, many)


# --- what does not load


def test_weights_left_on_disk_are_not_reported(checkpoints: Path) -> None:
    written = StringIO()
    handler = logging.StreamHandler(written)
    transformers.utils.logging.add_handler(handler)
    transformers.utils.logging.set_verbosity_warning()
    try:
        load_encoder(checkpoints / "vit-classifier")
        assert transformers.utils.logging.get_verbosity() == logging.WARNING
    finally:
        transformers.utils.logging.remove_handler(handler)
        transformers.utils.logging.set_verbosity_error()
    assert not written.getvalue()


def test_an_unsupported_model_type_lists_the_supported(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"bert: no encoder for model type `bert`; known are clip, .*siglip.*vit$"):
        load_encoder(tmp_path / "bert")
    (tmp_path / "unheard-of.json").write_text('{"model_type": "vlt"}')
    with pytest.raises(UserError, match="no encoder for model type `vlt`"):
        load_encoder(tmp_path / "unheard-of.json", meta=True)


@pytest.mark.parametrize("content", ["{", '{"model_type": "vit", "hidden_size": "large"}'])
def test_a_broken_config_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=tmp_path.name):
        load_encoder(tmp_path, meta=True)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no usable config"):
        load_encoder(tmp_path / "nowhere")


def test_missing_unknown_and_misshapen_weights_are_errors(copy: Callable[[str], Path]) -> None:
    folder = copy("vit")
    file = folder / "model.safetensors"
    weights = load_file(file)
    key = next(key for key in weights if key.endswith("fc1.weight") or "intermediate.dense.weight" in key)
    for changed, complaint in (
        ({k: v for k, v in weights.items() if k != key}, "lacks 1 weights, first `layers.0.mlp.fc1.weight`"),
        (weights | {"encoder.adapter.weight": torch.zeros(1)}, "has unknown 1 weights, first"),
        (weights | {key: torch.zeros(7, 32)}, "has other shapes of 1 weights, first"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=complaint):
            load_encoder(folder)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_an_error(copy: Callable[[str], Path], share: float) -> None:
    folder = copy("dinov2")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="weights cannot be read"):
        load_encoder(folder)


def test_a_folder_without_weights_and_a_pickle_are_errors(copy: Callable[[str], Path]) -> None:
    folder = copy("vit")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights cannot be read"):
        load_encoder(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="weights cannot be read"):
        load_encoder(folder)
