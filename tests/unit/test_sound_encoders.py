"""Encoders of sounds against transformers and against networks written out by hand, on tiny random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers.models.audio_spectrogram_transformer import (
    feature_extraction_audio_spectrogram_transformer as feature_extraction,
)

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.source import MediaError
from perceptune.encoders.base import Encoder, load_encoder
from perceptune.errors import UserError
from perceptune.models.slots.build import load_encoder_of
from sounds import CASES, KINDS, MOBILENET, build, encoded, mobilenet_weights, noise, tone, where

WAVE = encoded(tone(700, 0.4) + noise(0.4))
OTHER = encoded(noise(0.9, seed=1))


def features(encoder: Encoder, x: Tensor, levels: list[int], tokens: Any = "cls") -> Tensor:
    with torch.no_grad():
        out: Tensor = encoder(x, levels, tokens)
    return out


@pytest.mark.parametrize("name", ["ast", "ast-classifier"])
def test_ast_gives_the_normed_states_of_transformers(ears: Path, name: str) -> None:
    encoder, x = load_encoder(ears / name), torch.stack([load_encoder(ears / name).load(WAVE)] * 2)
    assert x.shape == (2, 32, 64)
    hf = transformers.ASTModel.from_pretrained(ears / name).eval()
    with torch.no_grad():
        states = hf(x.transpose(1, 2), output_hidden_states=True).hidden_states
        expected = torch.stack([hf.layernorm(states[level + 1]) for level in (0, 2)], dim=1)
    everything = features(encoder, x, [0, 2], "all")
    torch.testing.assert_close(everything, expected)
    assert everything.shape == (2, 2, encoder.n_tokens, encoder.dim)
    torch.testing.assert_close(features(encoder, x, [0, 2]), expected[:, :, :1])  # [CLS] is the first of two
    rows, columns = encoder.grid  # type: ignore[misc]  # frequency, time
    patches = hf.embeddings.patch_embeddings.projection(x.transpose(1, 2)[:, None].transpose(2, 3))
    assert (rows, columns) == tuple(patches.shape[2:])
    assert encoder.n_special + rows * columns == encoder.n_tokens


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_asts_sounds_enter_as_its_feature_extractor_prepares_them(
    ears: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_extraction, "is_speech_available", lambda: False)  # its path without torchaudio
    wave = (tone(700, seconds) + noise(seconds))[:, 0]
    extractor = transformers.ASTFeatureExtractor(**CASES["ast"][2])
    expected = extractor(wave, sampling_rate=16_000, return_tensors="np")["input_values"][0].T
    loaded = load_encoder(ears / "ast").load(encoded(wave, 16_000, "WAV", "DOUBLE"))
    np.testing.assert_allclose(loaded, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["whisper", "whisper-classifier"])
def test_whisper_gives_the_mean_where_there_is_sound(ears: Path, name: str) -> None:
    encoder = load_encoder(ears / name)
    x = encoder.load(WAVE)[None]
    hf = transformers.WhisperModel.from_pretrained(ears / "whisper").encoder.eval()
    if name != "whisper":
        hf = transformers.WhisperForAudioClassification.from_pretrained(ears / name).encoder.eval()
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    wave = (tone(700, 0.4) + noise(0.4))[:, 0]
    given = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(x[:, :-1], given, atol=1e-3, rtol=0)
    with torch.no_grad():
        states = hf(x[:, :-1], output_hidden_states=True).hidden_states
        expected = [hf.layer_norm(states[1]), states[3] if len(states) > 4 else hf.layer_norm(states[3])]
        whole = hf(x[:, :-1]).last_hidden_state
    torch.testing.assert_close(features(encoder, x, [0], "all")[:, 0], expected[0])
    torch.testing.assert_close(features(encoder, x, [2], "all")[:, 0], whole)
    # 0.4 of 1 second, in 50 positions
    torch.testing.assert_close(features(encoder, x, [2])[0, 0, 0], whole[0, :20].mean(0))
    assert encoder.n_tokens == 50


@pytest.mark.parametrize("name", ["clap", "clap-tower", "clap-fused"])
def test_clap_gives_the_means_of_its_stages(ears: Path, name: str) -> None:
    encoder = load_encoder(ears / name)
    x = torch.stack([encoder.load(WAVE), encoder.load(OTHER)])
    hf = transformers.ClapAudioModel.from_pretrained(
        ears / name, **({"key_mapping": {r"^audio_model\.": ""}} if name == "clap" else {}),
        config=transformers.AutoConfig.from_pretrained(ears / "clap").audio_config if name == "clap" else None,
    ).eval()  # fmt: skip
    seen: list[Tensor] = []
    for stage in hf.audio_encoder.layers:
        stage.blocks[-1].register_forward_hook(lambda module, given, out: seen.append(out[0].mean(1)))
    with torch.no_grad():
        pooled = hf(x.transpose(1, 2)[:, None], is_longer=torch.zeros(2, 1)).pooler_output
    out = features(encoder, x, [0, 1, 2])
    assert (encoder.n_layers, encoder.dim, out.shape) == (3, 32, (2, 3, 1, 32))
    for level, width in enumerate((8, 16)):
        torch.testing.assert_close(out[:, level, 0, :width], seen[level])
        assert not out[:, level, 0, width:].any()
    torch.testing.assert_close(out[:, 2, 0], pooled)


@pytest.mark.parametrize(("name", "padding"), [("clap", "repeatpad"), ("clap", "repeat"), ("clap-fused", "pad")])
def test_claps_sounds_enter_as_its_feature_extractor_prepares_them(
    ears: Path, tmp_path: Path, name: str, padding: str
) -> None:
    folder = shutil.copytree(ears / name, tmp_path / "copy")
    given = {**CASES[name][2], "padding": padding}
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    wave = (tone(700, 0.4) + noise(0.4))[:, 0]
    extractor = transformers.ClapFeatureExtractor(**given)
    expected = extractor(wave, sampling_rate=16_000, return_tensors="np")["input_features"][0][0].T
    np.testing.assert_allclose(load_encoder(folder).load(encoded(wave, 16_000, "WAV", "DOUBLE")), expected, atol=1e-3)


def mobilenet(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """What leaves each layer, by the paper's table, written out."""

    def convolution(name: str, x: Tensor, stride: int, act: Any, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.0.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, var, scale, shift = (weights[f"{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return act(F.batch_norm(x, mean, var, scale, shift, eps=1e-3))

    out = [convolution("features.0", x, 2, F.hardswish)]
    strided = {2, 4, 7, 13}
    for number, (_, inner, width, squeezed) in enumerate(MOBILENET, 1):
        name, y = f"features.{number}.block", out[-1]
        act = F.relu if number <= 6 else F.hardswish
        place = 0
        if inner != y.shape[1]:
            y, place = convolution(f"{name}.0", y, 1, act), 1
        y = convolution(f"{name}.{place}", y, 2 if number in strided else 1, act, inner)
        if squeezed:
            place += 1
            fc = [weights[f"{name}.{place}.conc_se_layers.0.{k}"] for k in
                  ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]  # fmt: skip
            scale = F.linear(F.relu(F.linear(y.mean((2, 3)), *fc[:2])), *fc[2:]).sigmoid()
            y = y * scale[:, :, None, None]
        y = convolution(f"{name}.{place + 1}", y, 1, lambda x: x)
        out.append(out[-1] + y if number not in strided and width == out[-1].shape[1] else y)
    return [*out, convolution("features.16", out[-1], 1, F.hardswish)]


def test_efficientat_is_the_network_of_its_paper(ears: Path) -> None:
    encoder = build(ears, "efficientat")
    x = torch.stack([encoder.load(WAVE), encoder.load(OTHER)])
    assert x.shape == (2, 128, 100)
    expected = mobilenet(mobilenet_weights(), x[:, None])
    out = features(encoder, x, list(range(17)))
    assert (encoder.n_layers, encoder.dim, out.shape) == (17, 72, (2, 17, 1, 72))
    for level, state in enumerate(expected):
        width = state.shape[1]
        torch.testing.assert_close(out[:, level, 0, :width], state.mean((2, 3)), atol=1e-5, rtol=1e-4)
        assert not out[:, level, 0, width:].any()
    assert not any("classifier" in key for key in encoder.state_dict())


def test_a_sound_becomes_a_picture(ears: Path) -> None:
    encoder = build(ears, "pictures")
    low, high = (encoder.load(encoded(tone(pitch, 1.0))) for pitch in (200, 6_000))
    assert low.shape == (3, 16, 16)
    rows = low.mean((0, 2)).argmax(), high.mean((0, 2)).argmax()
    assert rows[0] > 10
    assert rows[1] < 6  # high sounds above low ones
    late = encoder.load(encoded(np.concatenate([tone(200, 0.7) * 1e-3, tone(200, 0.3)])))
    columns = late.mean((0, 1))
    assert columns[12:].mean() > columns[:8].mean()  # time runs to the right
    loud, soft = (encoder.load(encoded(noise(1.0) * by, 16_000, "WAV", "FLOAT")) for by in (1.0, 0.1))
    torch.testing.assert_close(soft, loud, atol=0.05, rtol=0)  # not of loudness


def test_nothing_of_a_sound_is_cropped_away(ears: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ears / "pictures", tmp_path / "copy")
    file = folder / "preprocessor_config.json"
    cropped = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
    file.write_text(json.dumps(json.loads(file.read_text()) | cropped))
    end = encoded(np.concatenate([tone(200, 0.9) * 1e-4, tone(200, 0.1)]), 16_000, "WAV", "FLOAT")
    columns = load_encoder_of("audio", EncoderConfig(id=str(folder), seconds=1.0)).load(end).mean((0, 1))
    assert columns.shape == (16,)
    assert columns[-1] > columns[:12].max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_each_sound_gives_alone(ears: Path, kind: str) -> None:
    encoder = build(ears, kind)
    x = torch.stack([encoder.load(data) for data in (WAVE, OTHER, encoded(noise(0.2, seed=4)))])
    levels = list(range(encoder.n_layers))
    alone = torch.cat([features(encoder, row[None], levels) for row in x])
    torch.testing.assert_close(features(encoder, x, levels), alone, rtol=1e-5, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    torch.testing.assert_close(features(encoder, x, levels[-2:]), alone[:, -2:], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=f"0 to {encoder.n_layers - 1}"):
        features(encoder, x, [encoder.n_layers])


@pytest.mark.parametrize("kind", ["clap", "efficientat"])
def test_stages_have_no_common_tokens(ears: Path, kind: str) -> None:
    encoder = build(ears, kind)
    with pytest.raises(UserError, match="one pooled token a level"):
        features(encoder, encoder.load(WAVE)[None], [0], "all")


@pytest.mark.parametrize("kind", KINDS)
def test_loading_is_deterministic_and_views_follow_their_seed(ears: Path, kind: str) -> None:
    encoder = build(ears, kind, time_mask=40, frequency_mask=12)
    plain = encoder.load(WAVE)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(encoder.load(WAVE), plain, rtol=0, atol=0)
    views = [encoder.load(WAVE, None, bytes([i])) for i in range(6)]
    assert all(view.shape == plain.shape for view in views)
    assert len({view.numpy().tobytes() for view in views}) == 6
    torch.testing.assert_close(encoder.load(WAVE, None, b"\3"), views[3], rtol=0, atol=0)
    none = build(ears, kind, time_mask=0, frequency_mask=0)
    torch.testing.assert_close(none.load(WAVE, None, b"\3"), plain, rtol=0, atol=0)
    assert encoder.augmentation() == {"time_mask": 40, "frequency_mask": 12}
    assert encoder.fingerprint == none.fingerprint  # views are no matter of the plain features


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_what_is_heard_and_of_the_weights(ears: Path, kind: str) -> None:
    prints = {build(ears, kind, **given).fingerprint for given in ({}, {"seconds": 0.3}, {"dtype": "bfloat16"})}
    assert len(prints) == 3
    assert build(ears, kind).fingerprint in prints
    json.dumps(build(ears, kind).preprocessing())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_float32_near_the_exact(ears: Path, kind: str) -> None:
    rough, exact = build(ears, kind, dtype="bfloat16"), build(ears, kind)
    x = exact.load(WAVE)[None]
    out, expected = features(rough, x, [1]), features(exact, x, [1])
    assert out.dtype == torch.float32
    assert 0 < (out - expected).abs().max() < 0.1 * expected.abs().max() + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_meta_counts_the_parameters_of_the_real_thing(ears: Path, kind: str) -> None:
    real = build(ears, kind)
    config = EncoderConfig(id=str(where(ears, kind)))
    meta = load_encoder_of("audio", config, meta=True)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert (meta.n_layers, meta.dim, meta.n_tokens) == (real.n_layers, real.dim, real.n_tokens)
    assert not any(p.requires_grad for p in real.parameters())
    assert not any(module.training for module in real.train(True).modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_that_cannot_be_used_is_named(ears: Path, kind: str) -> None:
    encoder = build(ears, kind)
    with pytest.raises(MediaError, match=r"^audio: silent"):
        encoder.load(encoded(tone() * 0))
    with pytest.raises(MediaError, match=r"^clip 7: not an audio file"):
        encoder.load(b"nothing to hear in here", "clip 7")


def test_masks_hide_frames_and_bands() -> None:
    from perceptune.encoders._audio import masked

    spectrogram = np.arange(1, 20 * 30 + 1, dtype=np.float32).reshape(20, 30)
    widths = []
    for i in range(300):
        seen = masked(spectrogram, (10, 6), bytes([i % 256, i // 256]), -1.0)
        hidden = seen == -1.0
        np.testing.assert_array_equal(seen[~hidden], spectrogram[~hidden])
        frames, bands = hidden.all(0), hidden.all(1)
        np.testing.assert_array_equal(hidden, frames[None] | bands[:, None])  # whole frames and whole bands
        for run in (frames, bands):
            assert np.abs(np.diff(np.pad(run.astype(int), 1))).sum() in (0, 2)  # in one piece
        widths.append((int(frames.sum()), int(bands.sum())))
    assert {w for w, _ in widths} == set(range(11))
    assert {w for _, w in widths} == set(range(7))
    assert (masked(spectrogram, (99, 0), b"long", 0.0) == 0).sum() <= spectrogram.size


def test_the_default_encoder_is_known_before_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr("perceptune.utils.downloads._run_pip", lambda *_: pytest.fail("it was fetched"))
    encoder = load_encoder_of("audio", EncoderConfig(), meta=True)
    assert (encoder.n_layers, encoder.dim, encoder.n_tokens) == (6, 512, 1500)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 20_590_592
    assert encoder.preprocessing()["seconds"] == 30
