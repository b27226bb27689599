"""Encoders of sounds that cannot be had as they are asked for: keys, preprocessing, files of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from perceptune.config.schema import EncoderConfig
from perceptune.encoders.base import load_encoder
from perceptune.errors import UserError
from perceptune.models.slots.build import load_encoder_of
from sounds import CASES, build, encoded, mobilenet_weights, tone, where


@pytest.mark.parametrize(
    ("modality", "kind", "given", "message"),
    [
        ("audio", "ast", {"size": 32}, r"encoders\.audio\.size: `.*ast` has no such key"),
        ("audio", "efficientat", {"flip": False}, r"encoders\.audio\.flip: .* has no such key"),
        ("audio", "pictures", {"flip": False}, r"encoders\.audio\.flip: .* has no such key"),
        ("image", "pictures", {"seconds": 3.0}, r"encoders\.image\.seconds: .* has no such key"),
        ("image", "pictures", {"time_mask": 3}, r"encoders\.image\.time_mask: .* has no such key"),
        ("image", "whisper", {}, r"encoders\.image `.*whisper` reads audios, not images"),
        ("audio", "ast", {"seconds": 0.7}, r"ast: `seconds` is 0\.7, but the model hears 0\.655 seconds at most"),
        ("audio", "whisper", {"seconds": 1.5}, "whisper: `seconds` is 1.5, but the model hears 1 seconds at most"),
        ("audio", "clap", {"seconds": 1.5}, "clap: `seconds` is 1.5, but the model hears 1 seconds at most"),
        ("audio", "efficientat", {"seconds": 7200.0}, "`seconds` is 7200, but the model hears 3600 seconds"),
    ],
)
def test_keys_that_mean_nothing_are_refused(
    ears: Path, modality: str, kind: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder_of(modality, EncoderConfig(id=str(where(ears, kind)), **given))


def test_keys_of_pictures_are_heeded_for_pictures_of_sounds(ears: Path) -> None:
    assert build(ears, "pictures", size=32).load(encoded(tone())).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ast", {"max_length": 128}, "its preprocessing has `max_length` 128, its model 64"),
        ("whisper", {"chunk_length": 2}, "gives 20 mel bands x 200 frames, its model takes 20 mel bands x 100 frames"),
        ("clap", {"feature_size": 32}, "its preprocessing gives 32 mel bands, its model takes 16"),
        ("clap", {"padding": "mirror"}, "has an unknown `padding`: mirror"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    ears: Path, tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(ears / kind, tmp_path / "copy")
    (folder / "preprocessor_config.json").write_text(json.dumps({**CASES[kind][2], **changes}))
    with pytest.raises(UserError, match=message):
        load_encoder(folder)


def test_files_of_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file, weights = tmp_path / "net.pt", mobilenet_weights()
    key = "features.3.block.1.1.running_mean"
    for changed, message in (
        ({k: v for k, v in weights.items() if k != key}, f"not a MobileNet of EfficientAT .*{key}"),
        (weights | {"features.17.weight": torch.zeros(1)}, r"not a MobileNet of EfficientAT .*features\.17"),
        (weights | {key: torch.zeros(3)}, "not a MobileNet of EfficientAT .*size mismatch"),
        ({"layer.weight": torch.zeros(1)}, r"not a MobileNet of EfficientAT .*features\.0\.0\.weight"),
        ({"a": "text"}, "holds no table of weights"),
        ([torch.zeros(1)], "holds no table of weights"),
    ):
        torch.save(changed, file)
        with pytest.raises(UserError, match=rf"net\.pt: {message}"):
            load_encoder(file)
    data = file.read_bytes()
    for broken in (b"", b"not a file of torch", data[: len(data) // 2]):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"net\.pt: the weights cannot be read"):
            load_encoder(file)
    torch.save({"weights": Trap()}, file)
    with pytest.raises(UserError, match=r"net\.pt: the weights cannot be read"):
        load_encoder(file)
    with pytest.raises(UserError, match=r"no model folder or file `.*nets\.pt`; did you mean `.*net\.pt`"):
        load_encoder_of("audio", EncoderConfig(id=str(tmp_path / "nets.pt")))


class Trap:
    """What a pickle could run."""

    def __reduce__(self) -> Any:
        return print, ("run",)
