"""The tokens of a level, from one to all: fixed means of patches, and levels before the final norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import perceptune
import sounds
import support
from encoder_cases import photo
from perceptune.config.schema import CacheConfig, EncoderConfig
from perceptune.data.build_task import make_task
from perceptune.encoders.base import Encoder, TokenSelection, load_encoder
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError
from perceptune.methods.slots._options import InjectionOptions
from perceptune.models.slots.build import build_method, load_encoder_of

IMAGES = ("vit", "deit", "dinov2-registers", "clip", "siglip")
VIDEOS = ("timesformer", "videomae", "vivit")


def features(encoder: Encoder, x: Tensor, tokens: TokenSelection) -> Tensor:
    with torch.no_grad():
        out: Tensor = encoder(x, [0, 2], tokens)
    assert out.shape == (len(x), 2, encoder.count_tokens(tokens), encoder.dim)
    assert out.dtype == torch.float32
    return out


def pictures(n: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", IMAGES)
def test_means_of_an_image_are_those_of_its_patches(checkpoints: Path, name: str) -> None:
    """A cell at a time, by the patches' places; registers and a distillation token are left out."""
    encoder, x = load_encoder(checkpoints / name), pictures(3)
    every = features(encoder, x, "all")
    special = int(encoder.n_tokens) - 16  # type: ignore[operator]
    first, patches = every[:, :, : min(1, special)], every[:, :, special:]
    for side in (1, 2, 4):
        cells = []
        for row in range(side):
            for column in range(side):
                size = 4 // side
                own = [
                    4 * y + x for y in range(row * size, (row + 1) * size)
                    for x in range(column * size, (column + 1) * size)
                ]  # fmt: skip
                cells.append(patches[:, :, own].mean(2))
        expected = torch.cat([first, torch.stack(cells, 2)], 2)
        torch.testing.assert_close(features(encoder, x, f"grid-{side}"), expected)
    assert torch.equal(features(encoder, x, "grid-4"), torch.cat([first, patches], 2)), "as many cells as patches"
    if special:
        assert torch.equal(features(encoder, x, "cls-mean"), torch.cat([first, patches.mean(2, keepdim=True)], 2))


@pytest.mark.parametrize("name", VIDEOS)
def test_means_of_a_video_are_those_over_time_too(checkpoints: Path, name: str) -> None:
    """A video of one repeated picture has the grid of the picture; a cell depends on its own patches alone."""
    encoder = load_encoder(checkpoints / name)
    x = torch.randn(2, int(encoder.frames), 3, 32, 32)  # type: ignore[arg-type]
    every = features(encoder, x, "all")
    special = 0 if name == "videomae" else 1
    patches = every[:, :, special:]
    steps = patches.shape[2] // 16
    by_place = patches.unflatten(2, (16, steps)).mean(3) if name == "timesformer" else patches.unflatten(
        2, (steps, 16)).mean(2)  # fmt: skip
    expected = torch.cat([every[:, :, :special], by_place], 2)
    torch.testing.assert_close(features(encoder, x, "grid-4"), expected)
    if special:
        whole = torch.cat([every[:, :, :1], patches.mean(2, keepdim=True)], 2)
        torch.testing.assert_close(features(encoder, x, "cls-mean"), whole)


def test_the_places_of_patches_are_those_of_the_picture(checkpoints: Path) -> None:
    """Without attention between patches, only the cell of a changed patch changes, whatever the order of tokens."""
    for name in ("clip", *VIDEOS):
        encoder: Any = load_encoder(checkpoints / name)
        for block in encoder.blocks:
            block.forward = lambda hidden, *_, name=name: (hidden,) if name == "timesformer" else hidden
        x = torch.randn(1, *([] if name == "clip" else [int(encoder.frames)]), 3, 32, 32)
        changed = x.clone()
        changed[..., 8:16, 16:24] += 1.0  # row 1, column 2 of 4 x 4 patches
        before, after = (features(encoder, one, "grid-4")[0, 0] for one in (x, changed))
        moved = (before - after).abs().sum(-1) > 1e-6
        assert moved.nonzero().flatten().tolist() == [4 + 2 + (len(moved) - 16)], name


@pytest.mark.parametrize("name", ["vit", "timesformer", "vivit"])
def test_a_batch_has_the_means_of_each_alone(checkpoints: Path, name: str) -> None:
    encoder: Any = load_encoder(checkpoints / name)
    x = torch.randn(4, *([] if name == "vit" else [int(encoder.frames)]), 3, 32, 32)
    for tokens in ("cls-mean", "grid-2"):
        alone = torch.cat([features(encoder, one[None], tokens) for one in x])
        torch.testing.assert_close(features(encoder, x, tokens), alone, rtol=0, atol=1e-5)


def test_a_grid_that_is_not_square_is_cut_as_torch_cuts_it(ears: Path) -> None:
    encoder: Any = sounds.build(ears, "ast")
    assert encoder.grid == (2, 5)
    x = torch.randn(2, 32, 64)
    every = features(encoder, x, "all")
    first, patches = every[:, :, :1], every[:, :, 2:]
    cells = nn.functional.adaptive_avg_pool2d(patches.flatten(0, 1).transpose(1, 2).unflatten(2, (2, 5)), 2)
    expected = torch.cat([first, cells.flatten(2).transpose(1, 2).unflatten(0, (2, 2))], 2)
    torch.testing.assert_close(features(encoder, x, "grid-2"), expected)
    with pytest.raises(UserError, match="grid-3`: it has 2 x 5 patches, so at most 2 x 2 means; use `grid-2`"):
        encoder.count_tokens("grid-3")


def test_adapters_give_the_means_of_the_encoder_inside(checkpoints: Path, ears: Path) -> None:
    image, clips = load_encoder(checkpoints / "vit"), str(checkpoints / "vit")
    video = load_encoder_of("video", EncoderConfig(id=clips, frames=3))
    x = pictures(3)
    torch.testing.assert_close(features(video, x[None], "grid-2")[0], features(image, x, "grid-2").mean(0))
    still: Any = load_encoder_of("image", EncoderConfig(id=str(checkpoints / "vivit")))
    assert features(still, x, "grid-2").shape[2] == 5
    heard = load_encoder_of("audio", EncoderConfig(id=clips))
    torch.testing.assert_close(features(heard, x, "cls-mean"), features(image, x, "cls-mean"))


@pytest.mark.parametrize(
    ("name", "tokens", "complaint"),
    [
        ("vit", "grid-3", "`tokens: grid-3`: it has 4 x 4 patches, which 3 does not divide; use `grid-2`"),
        ("vit", "grid-16", "`tokens: grid-16`: it has 4 x 4 patches, which 16 does not divide; use `grid-4`"),
        ("videomae", "grid-5", "which 5 does not divide; use `grid-4`"),
        ("siglip", "cls-mean", r"it has no \[CLS\], and its `cls` is the mean already; use `cls`"),
        ("videomae", "cls-mean", r"it has no \[CLS\]"),
        ("convnext", "cls-mean", "it gives one token a level; use `cls`"),
        ("convnext", "grid-2", "it gives one token a level; use `cls`"),
        ("convnext", "all", "it gives one token a level; use `cls`"),
    ],
)
def test_tokens_that_an_encoder_does_not_have_are_refused(
    checkpoints: Path, name: str, tokens: str, complaint: str
) -> None:
    encoder = load_encoder(checkpoints / name)
    with pytest.raises(UserError, match=complaint):
        encoder.count_tokens(tokens)
    with pytest.raises(UserError, match=r"`tokens: "):
        encoder(torch.randn(1, *([4] if name == "videomae" else []), 3, 32, 32), [0], tokens)


@pytest.mark.parametrize(("kind", "tokens"), [("whisper", "cls-mean"), ("whisper", "grid-2"), ("clap", "grid-2")])
def test_tokens_that_an_audio_encoder_does_not_have_are_refused(ears: Path, kind: str, tokens: str) -> None:
    encoder = sounds.build(ears, kind)
    with pytest.raises(UserError, match=f"`tokens: {tokens}`: it.*; use `cls`"):
        encoder.count_tokens(tokens)


def test_a_model_refuses_tokens_before_anything_is_encoded(checkpoints: Path) -> None:
    from perceptune.config.recipe import load_recipe
    from perceptune.lm.frozen_lm import FrozenLM

    named = {"encoders": {"image": {"id": str(checkpoints / "vit")}}, "method": {"name": "limber", "tokens": "grid-3"}}
    encoder, lm = load_encoder(checkpoints / "vit"), FrozenLM(support.random_lm("llama"))
    with pytest.raises(UserError, match=r"encoders\.image `.*vit`: `tokens: grid-3`: .*use `grid-2`"):
        build_method(load_recipe(named), lm, {"image": encoder})


@pytest.mark.parametrize(
    ("method", "count"),
    [({"name": "epalm", "n_levels": 2, "tokens": "cls-mean"}, 2),
     ({"name": "limber", "tokens": "grid-2", "slot_positions": "sequential"}, 5)],
    ids=["cls-mean", "grid-2"],
)  # fmt: skip
def test_each_mean_has_a_slot_of_its_own(dwarfs: Path, method: dict[str, Any], count: int) -> None:
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", method=method)
    model: Any = perceptune.build(given)
    samples = list(make_task(model.recipe).samples("train"))[:3]
    batch = model.collate(samples)
    assert batch.features["image"].values.shape[2] == count
    assert count in [slots.states[slots.entry].shape[1] for slots in model.prompt(samples).slots]
    loss, tokens = model.loss(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert tokens
    together = model.answer(samples)
    assert [model.answer([sample])[0] for sample in samples] == together


def test_a_selection_that_does_not_exist_names_the_nearest() -> None:
    for wrong in ("grid", "grid-0", "grid-04", "grid--1", "grid-2.5", "cls_mean", "ALL", "mean", ""):
        with pytest.raises(ValueError, match="`cls`, `cls-mean`, `grid-G`"):
            InjectionOptions(tokens=wrong)
    with pytest.raises(ValueError, match="did you mean `cls-mean`"):
        InjectionOptions(tokens="cls_mean")


def test_a_cache_of_other_tokens_is_never_read(checkpoints: Path, tmp_path: Path) -> None:
    encoder, cache = load_encoder(checkpoints / "vit"), CacheConfig(dir=tmp_path / "c")
    media = [photo(20, 30), photo(30, 20)]
    kinds = ("cls", "cls-mean", "grid-1", "grid-2", "grid-4", "all")
    kept = [FeatureStore(encoder, [1, 2], tokens, cache) for tokens in kinds]
    found = [one.get(media) for one in kept]
    assert len({one.folder for one in kept}) == len(kinds)
    assert [one.shape[2] for one in found] == [1, 2, 2, 5, 17, 17]
    assert torch.equal(found[4], found[5]), "as many cells as patches, [CLS] in front"
    again = FeatureStore(encoder, [1, 2], "grid-2", cache).get_cached(media)
    assert again is not None
    assert torch.equal(again, found[3])


@pytest.mark.parametrize("name", ["dinov2", "siglip", "timesformer", "videomae"])
def test_without_norm_levels_are_the_blocks_own_states(checkpoints: Path, name: str) -> None:
    normed: Any = load_encoder(checkpoints / name)
    bare: Any = load_encoder(checkpoints / name, norm="none")
    x = torch.randn(2, *([int(bare.frames)] if name in VIDEOS else []), 3, 32, 32)
    states = features(bare, x, "all")
    torch.testing.assert_close(normed.norm(states), features(normed, x, "all"))
    assert not torch.allclose(states, features(normed, x, "all"), atol=1e-2)
    one = states.mean(2, keepdim=True) if name in ("siglip", "videomae") else states[:, :, :1]
    torch.testing.assert_close(features(bare, x, "cls"), one, rtol=1e-4, atol=1e-5)
    assert bare.fingerprint != normed.fingerprint, "a cache of one is never read as the other"
    assert load_encoder(checkpoints / name, norm="auto").fingerprint == normed.fingerprint


def test_norm_is_a_key_of_encoders_with_a_final_norm_for_all_levels(checkpoints: Path, ears: Path) -> None:
    for modality in ("image", "audio", "video"):
        bare: Any = load_encoder_of(modality, EncoderConfig(id=str(checkpoints / "vit"), norm="none"))
        assert bare.settings()["final_norm"] is False
    for kind in ("ast", "whisper"):
        assert sounds.build(ears, kind, norm="none").fingerprint != sounds.build(ears, kind).fingerprint
    for modality in ("image", "audio", "video"):
        with pytest.raises(UserError, match=rf"encoders\.{modality}\.norm: .*convnext` has no such key there"):
            load_encoder_of(modality, EncoderConfig(id=str(checkpoints / "convnext"), norm="none"))
