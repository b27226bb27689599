"""Encoder weights in the layouts of their authors as folders of transformers: timm's ViT, AST and TimeSformer.

    timm         `cls_token`, `blocks.0.attn.qkv.weight`, ..., a state dict; or the `.npz` of the JAX original
    AST          `module.v.blocks.0.attn.qkv.weight`, ..., with `module.mlp_head.*`
    TimeSformer  `{"model_state": {"model.blocks.0.temporal_attn.qkv.weight": ...}}`

Every weight must be known and none may lack; heads of classifiers are left out.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.models.pretrained import appearing_folder, require_new_folder
from perceptune.utils.torch_files import read_torch_file, require_file

MODALITIES = {"vit": "image", "ast": "audio", "timesformer": "video"}
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of the published widths: weights do not tell
EPSILON = 1e-6  # of the originals' layer norms; transformers' own default is another
_CONTAINERS = ("model_state", "state_dict", "model")
_WRAPPERS = ("module.", "model.")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How the parts of an original are called here. Names of modules stand for their weight and bias."""

    model: str  # class of transformers
    blocks: str  # where its blocks lie
    tensors: Mapping[str, str]
    modules: Mapping[str, str]
    in_block: Mapping[str, str]
    unused: tuple[str, ...]  # how the names of heads begin
    splits_qkv: bool = True  # into `q_proj`, `k_proj` and `v_proj`


@dataclass(frozen=True)
class Heard:
    """What an AST hears: its positions tell only how many patches there are."""

    mels: int = 128
    frames: int = 1024
    stride: int = 10


_TENSORS = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
_MODULES = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
_VIT_BLOCK = {
    "norm1": "layernorm_before", "attn.qkv": "attention", "attn.proj": "attention.o_proj", "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_TIMESFORMER_BLOCK = {
    "norm1": "layernorm_before", "attn.qkv": "attention.attention.qkv", "attn.proj": "attention.output.dense",
    "temporal_norm1": "temporal_layernorm", "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense", "temporal_fc": "temporal_dense",
    "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
LAYOUTS = {
    "vit": Layout("ViTModel", "layers", _TENSORS, _MODULES, _VIT_BLOCK, ("head.", "pre_logits.")),
    "ast": Layout(
        "ASTModel", "layers", {**_TENSORS, "dist_token": "embeddings.distillation_token"}, _MODULES, _VIT_BLOCK,
        ("head.", "head_dist.", "mlp_head."),
    ),
    "timesformer": Layout(
        "TimesformerModel", "encoder.layer", {**_TENSORS, "time_embed": "embeddings.time_embeddings"}, _MODULES,
        _TIMESFORMER_BLOCK, ("head.",), splits_qkv=False,
    ),
}  # fmt: skip


def import_encoder(file: str | Path, out: str | Path, *, heads: int | None = None, heard: Heard = Heard()) -> str:
    """Writes the encoder in `file` as a folder of transformers, `out`; returns which kind it is.

    `heads` is the number of attention heads, where the width is none of the published ones. Raises `UserError` for
    weights that are unknown, missing or of another shape, and for a folder that is there already.
    """
    file, out = Path(file), Path(out)
    require_new_folder(out)
    require_file(file, "file of weights")
    weights, told = read_weights(file)
    kind = "timesformer" if "time_embed" in weights else "ast" if "dist_token" in weights else "vit"
    layout = LAYOUTS[kind]
    weights = _whole(file, layout, weights)
    config = _config(file, kind, weights, told if heads is None else heads, heard)
    model = _loaded(file, layout, config, weights)
    with appearing_folder(out) as folder:
        model.save_pretrained(folder)
        if preprocessor := _preprocessor(kind, config):
            (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")
    return kind


def read_weights(file: Path) -> tuple[Weights, int | None]:
    """The weights by timm's names without what stands around them, in float32; and the heads, if the file tells."""
    if file.suffix == ".npz":
        return _of_jax(file)
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            data: Any = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: the weights cannot be read ({error})") from error
    else:
        data = read_torch_file(file)
    for key in _CONTAINERS:
        data = data[key] if isinstance(data, dict) and isinstance(data.get(key), dict) else data
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise UserError(
            f"{file}: holds no table of weights, alone or at {', '.join(f'`{key}`' for key in _CONTAINERS)}"
        )
    weights = {str(name): tensor.float() for name, tensor in data.items()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    # AST's own classifier lies beside its transformer.
    weights = {name.removeprefix("v."): tensor for name, tensor in weights.items()}
    return weights, None


def _of_jax(file: Path) -> tuple[Weights, int | None]:
    """The original's arrays by timm's names: kernels are the other way round, heads are an axis of their own."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name.removeprefix("opt/target/"): np.asarray(stored[name]) for name in stored.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: the weights cannot be read ({error})") from error
    named: dict[str, Any] = {}
    heads: int | None = None
    for name, array in arrays.items():
        if match := re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", name):
            block, part = f"blocks.{match[1]}.", match[2]
            if attention := re.fullmatch(r"MultiHeadDotProductAttention_1/(query|key|value)/(kernel|bias)", part):
                heads = int(array.shape[-2])
                flat = array.reshape(array.shape[0], -1).T if attention[2] == "kernel" else array.reshape(-1)
                named.setdefault(f"{block}attn.qkv.{_KIND[attention[2]]}", {})[attention[1]] = flat
            elif part in _JAX_BLOCK:
                named[block + _JAX_BLOCK[part]] = array.reshape(-1, array.shape[-1]).T if array.ndim > 1 else array
            else:
                named[name] = array
        elif name.endswith("embedding/kernel") and array.ndim == 4:
            named["patch_embed.proj.weight"] = array.transpose(3, 2, 0, 1)
        else:
            named[_JAX.get(name, name)] = array.T if name.startswith(("head/", "pre_logits/")) else array
    for name, value in named.items():
        if isinstance(value, dict):
            if missing := [part for part in ("query", "key", "value") if part not in value]:
                raise UserError(f"{file}: lacks `{missing[0]}` of `{name}`")
            named[name] = np.concatenate([value[part] for part in ("query", "key", "value")])
    return {name: torch.from_numpy(np.ascontiguousarray(array)).float() for name, array in named.items()}, heads


_KIND = {"kernel": "weight", "bias": "bias"}
_JAX = {
    "cls": "cls_token", "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight", "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight", "head/bias": "head.bias",
    "pre_logits/kernel": "pre_logits.weight", "pre_logits/bias": "pre_logits.bias",
}  # fmt: skip
_JAX_BLOCK = {
    f"{theirs}/{key}": f"{ours}.{kind}"
    for theirs, ours, keys in (
        ("LayerNorm_0", "norm1", ("scale", "bias")), ("LayerNorm_2", "norm2", ("scale", "bias")),
        ("MultiHeadDotProductAttention_1/out", "attn.proj", ("kernel", "bias")),
        ("MlpBlock_3/Dense_0", "mlp.fc1", ("kernel", "bias")), ("MlpBlock_3/Dense_1", "mlp.fc2", ("kernel", "bias")),
    )
    for key, kind in zip(keys, ("weight", "bias"), strict=True)
}  # fmt: skip


def _whole(file: Path, layout: Layout, weights: Weights) -> Weights:
    """Without the heads. Raises `UserError` naming what the layout does not know, and what it wants."""
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(layout.unused)}
    depth = 1 + max((int(match[1]) for name in kept if (match := _BLOCK.fullmatch(name))), default=-1)
    parts = [*layout.modules, *(f"blocks.{i}.{part}" for i in range(max(depth, 1)) for part in layout.in_block)]
    wanted = [*layout.tensors, *(f"{part}.{kind}" for part in parts for kind in ("weight", "bias"))]
    for problem, names in (
        ("has unknown", sorted(set(kept) - set(wanted))),
        ("lacks", [name for name in wanted if name not in kept]),
    ):
        if names:
            raise UserError(
                f"{file}: {problem} weights of a {layout.model}: {', '.join(f'`{name}`' for name in names)}"
            )
    return kept


def _config(file: Path, kind: str, weights: Weights, heads: int | None, heard: Heard) -> Any:
    """The config of transformers: what the weights' shapes say, and what they do not."""
    import transformers

    width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
    heads = HEADS.get(width) if heads is None else heads
    if heads is None:
        raise UserError(f"{file}: {width} wide, which is no published width: say how many attention heads by --heads")
    if width % heads:
        raise UserError(f"{file}: {width} wide, which {heads} attention heads do not divide: say how many by --heads")
    shape: dict[str, Any] = {
        "hidden_size": width, "num_attention_heads": heads, "patch_size": patch, "layer_norm_eps": EPSILON,
        "num_hidden_layers": 1 + max(int(match[1]) for name in weights if (match := _BLOCK.fullmatch(name))),
        "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
    }  # fmt: skip
    positions = weights["pos_embed"].shape[1]
    if kind == "ast":
        high, long = ((length - patch) // heard.stride + 1 for length in (heard.mels, heard.frames))
        if positions != 2 + high * long:
            raise UserError(
                f"{file}: has positions of {positions - 2} patches, but {heard.mels} mel bands and {heard.frames} "
                f"frames at steps of {heard.stride} are {high * long}: say --mels, --frames and --stride"
            )
        return transformers.ASTConfig(
            **shape, num_mel_bins=heard.mels, max_length=heard.frames, frequency_stride=heard.stride,
            time_stride=heard.stride,
        )  # fmt: skip
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise UserError(f"{file}: `pos_embed` has {positions - 1} patches, which make no square")
    if kind == "timesformer":
        frames = weights["time_embed"].shape[1]
        return transformers.TimesformerConfig(**shape, image_size=side * patch, num_frames=frames)
    return transformers.ViTConfig(**shape, image_size=side * patch)


def _loaded(file: Path, layout: Layout, config: Any, weights: Weights) -> Any:
    """The model of transformers with the weights. Raises `UserError` for one of another shape."""
    import transformers

    given = {"add_pooling_layer": False} if layout.model == "ViTModel" else {}
    with torch.device("meta"):
        model = getattr(transformers, layout.model)(config, **given)
    wanted, renamed, theirs = model.state_dict(), Weights(), dict[str, str]()
    for name, tensor in weights.items():
        for ours, part in _renamed(layout, name, tensor).items():
            renamed[ours], theirs[ours] = part, name
    for ours, tensor in renamed.items():
        if tensor.shape != wanted[ours].shape:
            raise UserError(
                f"{file}: `{theirs[ours]}` does not fit: its part of shape {tuple(tensor.shape)} would be "
                f"{tuple(wanted[ours].shape)}"
            )
    model.load_state_dict(renamed, assign=True)
    return model


def _renamed(layout: Layout, name: str, tensor: Tensor) -> Weights:
    """A weight under our name, or under the three that queries, keys and values have here."""
    if name in layout.tensors:
        return {layout.tensors[name]: tensor}
    match = _BLOCK.fullmatch(name)
    if match is None:
        module, _, kind = name.rpartition(".")
        return {f"{layout.modules[module]}.{kind}": tensor}
    number, part, kind = match.groups()
    ours = f"{layout.blocks}.{number}.{layout.in_block[part]}"
    if part != "attn.qkv" or not layout.splits_qkv:
        return {f"{ours}.{kind}": tensor}
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{ours}.{letter}_proj.{kind}": one.contiguous() for letter, one in parts}


def _preprocessor(kind: str, config: Any) -> dict[str, Any]:
    """What a checkpoint says of its preprocessing, where the family's usual one is another."""
    if kind == "vit":
        scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "rescale_factor": 1 / 255}
        size = {"height": config.image_size, "width": config.image_size}
        flags = {"do_resize": True, "do_normalize": True}
        return {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 3, **flags, **scale}
    if kind == "ast":
        return {
            "feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": config.num_mel_bins,
            "max_length": config.max_length, "sampling_rate": 16_000, "mean": -4.2677393, "std": 4.5689974,
            "do_normalize": True,
        }  # fmt: skip
    return {}
