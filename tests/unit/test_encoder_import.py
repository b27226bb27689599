"""Weights in their authors' layouts: what is made of them computes what the original does, read literally."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from perceptune.cli.main import run as cli
from perceptune.encoders.base import load_encoder
from perceptune.errors import UserError
from perceptune.models.import_encoder import Heard, import_encoder

DIM, HEADS, DEPTH, PATCH, FRAMES = 24, 2, 3, 8, 4
HEARD = Heard(mels=32, frames=64)


class Attention(nn.Module):
    """Queries, keys and values in one map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (DIM // HEADS) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, DIM))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(DIM, 40), nn.Linear(40, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Of timm, and with `frames` of TimeSformer: attention over time first, then over the space of each frame."""

    def __init__(self, frames: int = 0) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM, eps=1e-6), Attention()
        self.norm2, self.mlp = nn.LayerNorm(DIM, eps=1e-6), Mlp()
        self.frames = frames
        if frames:
            self.temporal_norm1, self.temporal_attn = nn.LayerNorm(DIM, eps=1e-6), Attention()
            self.temporal_fc = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        if not self.frames:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        first, rest = x[:, :1], x[:, 1:]  # tokens of one place lie side by side, one for each frame
        b, places = len(x), rest.shape[1] // self.frames
        in_time = rest.reshape(b * places, self.frames, DIM)
        rest = rest + self.temporal_fc(self.temporal_attn(self.temporal_norm1(in_time)).reshape(rest.shape))
        in_space = rest.reshape(b, places, self.frames, DIM).transpose(1, 2).reshape(b * self.frames, places, DIM)
        seen = torch.cat([first.repeat_interleave(self.frames, 0), in_space], 1)
        seen = self.attn(self.norm1(seen))
        cls = seen[:, 0].reshape(b, self.frames, DIM).mean(1, keepdim=True)
        space = seen[:, 1:].reshape(b, self.frames, places, DIM).transpose(1, 2).reshape(rest.shape)
        x = torch.cat([first, rest], 1) + torch.cat([cls, space], 1)
        return x + self.mlp(self.norm2(x))


class Original(nn.Module):
    """One of the three, its parts named as its authors name them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        channels, patch, stride = (1, 16, 10) if kind == "ast" else (3, PATCH, PATCH)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, DIM, patch, stride)
        positions = 2 + 2 * 5 if kind == "ast" else 1 + 4
        self.cls_token, self.pos_embed = (
            nn.Parameter(torch.randn(1, 1, DIM)),
            nn.Parameter(torch.randn(1, positions, DIM)),
        )
        if kind == "ast":
            self.dist_token, self.head_dist = nn.Parameter(torch.randn(1, 1, DIM)), nn.Linear(DIM, 5)
        if kind == "timesformer":
            self.time_embed = nn.Parameter(torch.randn(1, FRAMES, DIM))
        self.blocks = nn.ModuleList(Block(FRAMES if kind == "timesformer" else 0) for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(DIM, eps=1e-6), nn.Linear(DIM, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def embedded(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), sounds (B, mels, frames), clips (B, frames, 3, H, W)."""
        if self.kind == "ast":
            tokens = self.patch_embed.proj(x[:, None]).flatten(2).transpose(1, 2)  # type: ignore[operator]
            first = torch.cat([self.cls_token, self.dist_token], 1).expand(len(x), -1, -1)
            return torch.cat([first, tokens], 1) + self.pos_embed
        frames = x.flatten(0, 1) if self.kind == "timesformer" else x
        tokens = self.patch_embed.proj(frames).flatten(2).transpose(1, 2)  # type: ignore[operator]
        hidden = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        if self.kind != "timesformer":
            return hidden
        rest = hidden[:, 1:].unflatten(0, (-1, FRAMES)) + self.time_embed[:, :, None]
        return torch.cat([hidden[::FRAMES, :1], rest.transpose(1, 2).flatten(1, 2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[CLS] (B, DEPTH, DIM) of each block through the final norm."""
        hidden, levels = self.embedded(x), []
        for block in self.blocks:
            hidden = block(hidden)
            levels.append(self.norm(hidden[:, 0]))
        return torch.stack(levels, 1)


def original(kind: str) -> Original:
    torch.manual_seed(4)
    return Original(kind).eval()


def wrapped(kind: str) -> dict[str, Any]:
    """What the authors' files hold."""
    weights = original(kind).state_dict()
    if kind == "ast":
        heads = {"module.mlp_head.0.weight": torch.ones(DIM), "module.mlp_head.1.bias": torch.ones(5)}
        return {f"module.v.{name}": tensor for name, tensor in weights.items()} | heads
    if kind == "timesformer":
        return {"model_state": {f"model.{name}": t for name, t in weights.items()}, "epoch": 3, "cfg": "text"}
    return weights


def in_jax(weights: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """A ViT's weights as the JAX original stores them, written from its shapes: (in, heads, head size) and so on."""
    size, found = DIM // HEADS, dict[str, Any]()
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        fused = (weights[f"{ours}attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), *fused, strict=True):
            found[f"{theirs}MultiHeadDotProductAttention_1/{name}/kernel"] = weight.T.reshape(DIM, HEADS, size)
            found[f"{theirs}MultiHeadDotProductAttention_1/{name}/bias"] = bias.reshape(HEADS, size)
        found[f"{theirs}MultiHeadDotProductAttention_1/out/kernel"] = weights[f"{ours}attn.proj.weight"].T.reshape(
            HEADS, size, DIM
        )
        found[f"{theirs}MultiHeadDotProductAttention_1/out/bias"] = weights[f"{ours}attn.proj.bias"]
        for norm, number in (("norm1", 0), ("norm2", 2)):
            found[f"{theirs}LayerNorm_{number}/scale"] = weights[f"{ours}{norm}.weight"]
            found[f"{theirs}LayerNorm_{number}/bias"] = weights[f"{ours}{norm}.bias"]
        for number in (0, 1):
            found[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = weights[f"{ours}mlp.fc{number + 1}.weight"].T
            found[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = weights[f"{ours}mlp.fc{number + 1}.bias"]
    found |= {
        "cls": weights["cls_token"], "Transformer/posembed_input/pos_embedding": weights["pos_embed"],
        "embedding/kernel": weights["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": weights["patch_embed.proj.bias"], "Transformer/encoder_norm/scale": weights["norm.weight"],
        "Transformer/encoder_norm/bias": weights["norm.bias"], "head/kernel": weights["head.weight"].T,
        "head/bias": weights["head.bias"], "pre_logits/kernel": torch.ones(DIM, DIM),
        "pre_logits/bias": torch.ones(DIM),
    }  # fmt: skip
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in found.items()}


def saved_as(kind: str, folder: Path, suffix: str, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    file, data = folder / f"{kind}{suffix}", wrapped(kind)
    if change is not None:
        change(data["model_state"] if kind == "timesformer" else data)
    if suffix == ".npz":
        np.savez(file, **in_jax(data))
    elif suffix == ".safetensors":
        save_file(data, file)
    else:
        torch.save(data, file)
    return file


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("vit", ".pth"), ("vit", ".safetensors"), ("vit", ".npz"), ("ast", ".pth"), ("timesformer", ".pyth")],
)
def test_it_computes_what_the_original_does(kind: str, suffix: str, tmp_path: Path) -> None:
    heads = None if suffix == ".npz" else HEADS
    assert import_encoder(saved_as(kind, tmp_path, suffix), tmp_path / "out", heads=heads, heard=HEARD) == kind
    encoder = load_encoder(tmp_path / "out")
    shape = {"vit": (3, 16, 16), "ast": (32, 64), "timesformer": (FRAMES, 3, 16, 16)}[kind]
    x = torch.randn(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, [0, 1, 2])[:, :, 0], original(kind)(x), rtol=1e-4, atol=1e-5)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    file = saved_as("vit", tmp_path, ".pth", lambda data: data.update({name: t.half() for name, t in data.items()}))
    import_encoder(file, tmp_path / "out", heads=HEADS)
    encoder: Any = load_encoder(tmp_path / "out")
    kept = encoder.tower.layernorm.weight
    assert torch.equal(kept, original("vit").norm.weight.half().float())


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.pop(name)


def with_(name: str, tensor: Tensor) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.update({name: tensor})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("vit", without("norm.bias"), r"lacks weights of a ViTModel: `norm.bias`$"),
        ("vit", without("blocks.1.attn.qkv.weight"), "lacks .*`blocks.1.attn.qkv.weight`"),
        ("vit", without("cls_token"), "lacks .*`cls_token`"),
        ("vit", with_("blocks.0.ls1.gamma", torch.ones(DIM)), r"has unknown .*: `blocks.0.ls1.gamma`$"),
        ("vit", with_("blocks.0.mlp.fc1.bias", torch.ones(7)), r"`blocks.0.mlp.fc1.bias` .*\(7,\) would be \(40,\)"),
        ("vit", with_("blocks.0.attn.qkv.bias", torch.ones(70)), "`blocks.0.attn.qkv.bias`"),
        ("vit", with_("pos_embed", torch.ones(1, 7, DIM)), "6 patches, which make no square"),
        ("ast", without("module.v.dist_token"), "unknown|lacks"),
        ("ast", without("module.v.blocks.2.norm1.bias"), "lacks weights of a ASTModel: `blocks.2.norm1.bias`"),
        ("ast", with_("module.v.pos_embed", torch.ones(1, 9, DIM)), "7 patches, but 32 mel bands and 64 frames"),
        ("timesformer", without("model.blocks.0.temporal_fc.weight"), "lacks .*`blocks.0.temporal_fc.weight`"),
        ("timesformer", with_("model.rel_pos", torch.ones(1)), "has unknown .*`rel_pos`"),
    ],
)  # fmt: skip
def test_every_weight_that_is_unknown_missing_or_of_another_shape_is_named(
    kind: str, change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        import_encoder(saved_as(kind, tmp_path, ".pth", change), tmp_path / "out", heads=HEADS, heard=HEARD)
    assert not (tmp_path / "out").exists()


def test_a_broken_npz_is_named_by_its_own_names(tmp_path: Path) -> None:
    arrays = in_jax(original("vit").state_dict())
    for name, message in (
        ("Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel", "lacks `key` of `blocks.1.attn.qkv"),
        ("Transformer/encoder_norm/scale", "lacks .*`norm.weight`"),
    ):
        np.savez(tmp_path / "less.npz", **{key: array for key, array in arrays.items() if key != name})
        with pytest.raises(UserError, match=message):
            import_encoder(tmp_path / "less.npz", tmp_path / "out")
    np.savez(tmp_path / "more.npz", **arrays, **{"Transformer/extra": np.ones(3)})
    with pytest.raises(UserError, match=r"unknown .*`Transformer/extra`"):
        import_encoder(tmp_path / "more.npz", tmp_path / "out")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = saved_as("ast", tmp_path, ".pth"), tmp_path / "out"
    assert cli(["import-encoder", str(file), str(out)]) == 2
    assert "--heads" in capsys.readouterr().err
    given = ["--heads", "2", "--mels", "32", "--frames", "64"]
    for wrong in (["--stride", "0", "--heads", "2"], ["--heads", "0"]):
        with pytest.raises(SystemExit, match="2"):
            cli(["import-encoder", str(file), str(out), *wrong])
        assert f"{wrong[0]}: `0` is not a whole number of at least 1" in capsys.readouterr().err
    assert cli(["import-encoder", str(file), str(out), *given[2:], "--heads", "5"]) == 2
    assert "which 5 attention heads do not divide" in capsys.readouterr().err
    assert cli(["import-encoder", str(file), str(out), *given]) == 0
    assert "audio" in capsys.readouterr().out
    assert cli(["import-encoder", str(file), str(out), *given]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli(["import-encoder", str(tmp_path / "as.pth"), str(tmp_path / "new")]) == 2
    assert "did you mean `ast.pth`" in capsys.readouterr().err
    for name, data in (("notes.pth", b"no weights"), ("notes.npz", b"no"), ("notes.safetensors", b"none")):
        (tmp_path / name).write_bytes(data)
        assert cli(["import-encoder", str(tmp_path / name), str(tmp_path / "new")]) == 2
        assert name in capsys.readouterr().err
