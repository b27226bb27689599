"""Checkpoints of encoders that do not load, or not all of them: what is wrong is said by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from perceptune.encoders.base import load_encoder
from perceptune.errors import UserError


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
    with pytest.raises(
        UserError, match=r"bert: no encoder for model type `bert`; known are audio-.*clip, .*siglip.*vit"
    ):
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
