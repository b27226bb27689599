"""Encoders of clips against transformers, on tiny random models; encoders that serve another modality."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import clips
from encoder_cases import SIZE, VIDEO_CASES, photo
from perceptune.config.recipe import load_recipe
from perceptune.config.schema import EncoderConfig
from perceptune.data.media.video import read_frames
from perceptune.encoders._fit import fit
from perceptune.encoders.base import Encoder, VideoEncoder, load_encoder
from perceptune.errors import UserError
from perceptune.models.slots.build import load_encoder_of

FAMILIES = ("timesformer", "videomae", "vivit")


def video(n: int, frames: int = 4, size: int = 32) -> Tensor:
    return torch.randn(n, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(encoder: Encoder, x: Tensor, levels: list[int], tokens: Any = "cls") -> Tensor:
    with torch.no_grad():
        out: Tensor = encoder(x, levels, tokens)
    return out


def reference(folder: Path, name: str) -> Any:
    return getattr(transformers, VIDEO_CASES[name][0]).from_pretrained(folder).eval()


def test_every_family_is_here() -> None:
    assert {name.split("-")[0] for name in VIDEO_CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", VIDEO_CASES)
def test_levels_are_the_normed_hidden_states_of_transformers(checkpoints: Path, name: str) -> None:
    encoder, hf, x = load_encoder(checkpoints / name), reference(checkpoints / name, name), video(2)
    assert isinstance(encoder, VideoEncoder)
    norm = hf.layernorm or torch.nn.Identity()
    assert (hf.layernorm is None) == (name == "videomae-classifier")
    with torch.no_grad():
        out = hf(x, output_hidden_states=True)
        expected = torch.stack([norm(out.hidden_states[level + 1]) for level in (0, 2)], dim=1)
    everything = features(encoder, x, [0, 2], "all")
    torch.testing.assert_close(everything, expected)
    torch.testing.assert_close(everything[:, 1], out.last_hidden_state)
    assert everything.shape == (2, 2, encoder.n_tokens, encoder.dim)
    pooled = expected.mean(2, keepdim=True) if name.startswith("videomae") else expected[:, :, :1]
    torch.testing.assert_close(features(encoder, x, [0, 2]), pooled)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_gives_what_each_clip_gives_alone(checkpoints: Path, name: str) -> None:
    encoder, x = load_encoder(checkpoints / name), video(3)
    for tokens in ("cls", "all"):
        alone = torch.cat([features(encoder, row[None], [0, 1, 2], tokens) for row in x])
        torch.testing.assert_close(features(encoder, x, [0, 1, 2], tokens), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_frames_matters(checkpoints: Path, name: str) -> None:
    encoder, x = load_encoder(checkpoints / name), video(1)
    assert (features(encoder, x, [2]) - features(encoder, x.flip(1), [2])).abs().max() > 1e-4


@pytest.mark.parametrize("size", [32, 40])
def test_timesformer_takes_more_frames_and_other_sizes(checkpoints: Path, size: int) -> None:
    """Time embeddings repeat, as in the official code: 4 trained ones for 8 frames, each twice."""
    encoder = load_encoder(checkpoints / "timesformer", frames=8, size=size)
    hf, x = reference(checkpoints / "timesformer", "timesformer"), video(2, 8, size)
    times = hf.embeddings.time_embeddings
    hf.embeddings.time_embeddings = torch.nn.Parameter(times.repeat_interleave(2, dim=1))
    hf.config.num_frames, hf.config.image_size = 8, size
    with torch.no_grad():
        expected = hf(x).last_hidden_state
    torch.testing.assert_close(features(encoder, x, [2], "all")[:, 0], expected)
    assert encoder.n_tokens == 1 + 8 * (size // 8) ** 2


@pytest.mark.parametrize("name", ["videomae", "vivit"])
@pytest.mark.parametrize("frames", [2, 8])
def test_other_lengths_take_the_nearest_positions(checkpoints: Path, name: str, frames: int) -> None:
    encoder, hf = load_encoder(checkpoints / name, frames=frames), reference(checkpoints / name, name)
    x, steps = video(2, frames), {2: [0], 8: [0, 0, 1, 1]}[frames]
    table = hf.embeddings.position_embeddings
    special, rest = table[:, : table.shape[1] - 32], table[:, -32:].unflatten(1, (2, 16))
    table = torch.cat([special, rest[:, steps].flatten(1, 2)], dim=1)
    hf.embeddings.position_embeddings = torch.nn.Parameter(table) if name == "vivit" else table
    with torch.no_grad():
        expected = hf(x).last_hidden_state
    torch.testing.assert_close(features(encoder, x, [2], "all")[:, 0], expected)


def test_lengths_and_sizes_that_do_not_fit_are_errors(checkpoints: Path) -> None:
    with pytest.raises(UserError, match=r"videomae: `frames` 5 is not a multiple of its patches' 2; use 4 or 6"):
        load_encoder(checkpoints / "videomae", frames=5)
    with pytest.raises(UserError, match=r"vivit: its frames are 32 x 32; `size` cannot change that"):
        load_encoder(checkpoints / "vivit", size=48)


def test_an_undivided_timesformer_is_an_error(copy: Callable[[str], Path]) -> None:
    folder = copy("timesformer")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_type": "space_only"}))
    with pytest.raises(UserError, match="`attention_type` space_only; known is divided_space_time"):
        load_encoder(folder, meta=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_clips_enter_as_their_frames(checkpoints: Path, name: str) -> None:
    encoder, data = load_encoder(checkpoints / name), clips.clip(range(10))
    loaded = encoder.load(data)
    expected = [encoder.transform(image) for image in read_frames(data, 4)]  # type: ignore[operator]
    np.testing.assert_array_equal(loaded.numpy(), np.stack(expected))
    assert loaded.dtype == torch.float32


def test_a_view_shows_the_same_part_of_every_frame(checkpoints: Path) -> None:
    encoder = load_encoder(checkpoints / "timesformer")
    still = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = clips.encoded([still] * 12, range(12), ("matroska", "ffv1", "yuv420p"))  # without loss
    plain, seen = encoder.load(data), set()
    for number in range(6):
        view = encoder.load(data, seed=bytes([number]))
        assert all(torch.equal(frame, view[0]) for frame in view)
        assert not torch.equal(view, plain)
        seen.add(view.numpy().tobytes())
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["vit", "dinov2", "siglip"])
def test_an_image_encoder_is_averaged_over_frames(checkpoints: Path, name: str) -> None:
    options = EncoderConfig(id=str(checkpoints / name), frames=3)
    encoder, image = load_encoder_of("video", options), load_encoder(checkpoints / name)
    data = clips.clip(range(10))
    x = encoder.load(data, "a clip")
    assert (x.shape, encoder.modality) == ((3, 3, 32, 32), "video")
    for tokens in ("cls", "all"):
        alone = features(image, x, [0, 2], tokens)
        torch.testing.assert_close(features(encoder, x[None], [0, 2], tokens)[0], alone.mean(0), rtol=0, atol=1e-5)
    assert encoder.fingerprint != image.fingerprint
    assert encoder.fingerprint != load_encoder_of("video", EncoderConfig(id=options.id)).fingerprint
    assert (encoder.n_layers, encoder.dim, encoder.n_tokens) == (image.n_layers, image.dim, image.n_tokens)
    assert (encoder.n_special, encoder.grid) == (image.n_special, image.grid)


@pytest.mark.parametrize(("name", "temporal"), [(n, "t1") for n in FAMILIES] + [("timesformer", "skip")])
def test_a_video_encoder_sees_pictures(checkpoints: Path, name: str, temporal: Any) -> None:
    still = load_encoder_of("image", EncoderConfig(id=str(checkpoints / name), temporal=temporal))
    clip_encoder = load_encoder(checkpoints / name, frames=1 if name == "timesformer" else 2)
    x = torch.stack([still.load(photo(40, 30)), still.load(photo(31, 50))])
    assert x.shape == (2, 3, 32, 32)
    out = features(still, x, [0, 2], "all")
    as_clip = features(clip_encoder, x[:, None].expand(-1, clip_encoder.frames, -1, -1, -1), [0, 2], "all")  # type: ignore
    assert torch.allclose(out, as_clip, atol=1e-5) == (temporal == "t1" and name != "timesformer")
    assert still.fingerprint != clip_encoder.fingerprint


def test_timesformer_marks_no_time_in_a_picture(checkpoints: Path) -> None:
    """As in eP-ALM's released code: attention over one step runs, nothing is added for the time."""
    still = load_encoder_of("image", EncoderConfig(id=str(checkpoints / "timesformer"), temporal="t1"))
    hf, x = reference(checkpoints / "timesformer", "timesformer"), torch.randn(2, 3, 32, 32)
    hf.embeddings.time_embeddings.data.zero_()
    hf.config.num_frames = 1
    with torch.no_grad():
        expected = hf(x[:, None]).last_hidden_state
    torch.testing.assert_close(features(still, x, [2], "all")[:, 0], expected)
    assert still.settings()["marks_time"] is False, "what was kept of pictures with a time is not theirs"
    unset = load_encoder_of("image", EncoderConfig(id=str(checkpoints / "timesformer")))
    assert unset.fingerprint == still.fingerprint


def test_without_attention_over_time_a_block_is_one_with_its_part_at_zero(checkpoints: Path) -> None:
    still = load_encoder_of("image", EncoderConfig(id=str(checkpoints / "timesformer"), temporal="skip"))
    zeroed = load_encoder(checkpoints / "timesformer", frames=1)
    for block in zeroed.blocks:  # type: ignore[union-attr]
        block.temporal_dense.weight.data.zero_()
        block.temporal_dense.bias.data.zero_()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(features(still, x, [0, 2], "all"), features(zeroed, x[:, None], [0, 2], "all"))


def test_keys_of_another_modality_are_errors(checkpoints: Path) -> None:
    for modality, name, keys, complaint in (
        ("image", "vit", {"frames": 4}, r"encoders\.image\.frames: .*vit` has no such key there; choose from .*`size`"),
        ("image", "vit", {"temporal": "t1"}, r"encoders\.image\.temporal: .*vit` has no such key"),
        ("video", "vit", {"temporal": "t1"}, r"encoders\.video\.temporal: .*vit` has no such key there; .*`frames`"),
        (
            "video",
            "vivit",
            {"temporal": "t1"},
            r"encoders\.video\.temporal: .*vivit` has no such key there; .*`frames`",
        ),
        ("image", "vivit", {"frames": 4}, r"encoders\.image\.frames: .*vivit` has no such key there; .*`temporal`"),
        ("video", "vit", {"seconds": 2.0}, r"encoders\.video\.seconds: .*vit` has no such key"),
        ("audio", "vit", {"frames": 4}, r"encoders\.audio\.frames: .*vit` has no such key there; .*`seconds`"),
        ("image", "convnext", {"frames": 4}, r"encoders\.image\.frames: .*convnext` has no such key"),
    ):
        with pytest.raises(UserError, match=complaint):
            load_encoder_of(modality, EncoderConfig(id=str(checkpoints / name), **keys))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"encoders\.image .*no attention over time alone; use `temporal: t1`"):
        load_encoder_of("image", EncoderConfig(id=str(checkpoints / "vivit"), temporal="skip"))
    with pytest.raises(UserError, match=r"`encoders\.image\.temporal`"):
        load_recipe({"encoders": {"image": {"temporal": "sometimes"}}})


@pytest.mark.parametrize(
    ("modality", "name", "own"),
    [
        *[("image", "swin", {}), ("audio", "swin", {"seconds": 2.0}), ("video", "swin", {"frames": 2})],
        *[("video", "vivit", {"frames": 2}), ("image", "vivit", {"temporal": "t1"})],
    ],
)
def test_keys_of_pictures_are_heeded_by_all_that_sees(
    checkpoints: Path, modality: str, name: str, own: dict[str, Any]
) -> None:
    keys = {"size": 32, "resample": "bicubic", "resize": "squash", "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    encoder = load_encoder_of(modality, EncoderConfig(id=str(checkpoints / name), **keys, **own))
    heeded = json.dumps(encoder.preprocessing())
    assert '"resample": 3' in heeded
    assert '"mean": [0.1, 0.2, 0.3]' in heeded


def test_the_default_for_clips_is_the_default_image_encoder(monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> None:
    asked = []
    monkeypatch.setattr("perceptune.utils.downloads.path", lambda name: asked.append(name) or checkpoints / "dinov2")
    encoder = load_encoder_of("video", load_recipe({"encoders": {"video": "default"}}).encoders["video"])
    assert asked == ["dinov2-small"]
    assert (encoder.frames, encoder.modality) == (8, "video")


def test_an_encoder_of_clips_can_be_asked_for_no_sounds(checkpoints: Path) -> None:
    encoder = load_encoder(checkpoints / "vivit")
    with pytest.raises(UserError, match=r"encoders\.audio .* reads videos, not audios"):
        fit(encoder, "audio", EncoderConfig())
    assert SIZE["num_hidden_layers"] == encoder.n_layers
    assert isinstance(Image.new("RGB", (2, 2)), Image.Image)
