"""Every encoder leaf against transformers, on tiny random models: its forward pass and its fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoder_cases import CASES, SIZE
from perceptune.config.registry import leaves
from perceptune.encoders.base import Encoder, ViTEncoder, load_encoder
from perceptune.errors import UserError

SPECIAL_TOKENS = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2-registers": 5, "clip": 1, "siglip": 0}


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
    assert encoder.grid == (size // 8, size // 8)
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
    from perceptune.data.media.source import ImageTransform

    return ImageTransform((32, 32), None, 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def test_half_precision_weights_give_float32_features(checkpoints: Path) -> None:
    encoder = load_encoder(checkpoints / "vit", dtype="bfloat16")
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    out = features(encoder, pictures(1), [2])
    assert out.dtype == torch.float32
    exact = features(load_encoder(checkpoints / "vit"), pictures(1), [2])
    assert 0 < (out - exact).abs().max() < 0.2


def test_the_fingerprint_is_of_weights_config_and_preprocessing(checkpoints: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("vit")
    original = load_encoder(checkpoints / "vit").fingerprint
    assert len(bytes.fromhex(original)) == 32
    assert load_encoder(folder).fingerprint == original  # not of the folder's name
    others = {
        load_encoder(folder, size=48).fingerprint,
        load_encoder(folder, mean=(0.4, 0.5, 0.6)).fingerprint,
        load_encoder(folder, resize="crop").fingerprint,
        load_encoder(folder, dtype="bfloat16").fingerprint,
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "5.0.0", "dtype": "float16"}))
    assert load_encoder(folder).fingerprint == original
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    others.add(load_encoder(folder).fingerprint)
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.cls_token"][0, 0, 0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    others.add(load_encoder(folder).fingerprint)
    assert len(others - {original}) == 6


def test_parts_never_used_do_not_enter_the_fingerprint(checkpoints: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"].add_(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(folder).fingerprint == load_encoder(checkpoints / "clip").fingerprint


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
