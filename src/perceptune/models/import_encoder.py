"""Encoder weights in the layouts of their authors as folders of transformers: timm's ViT, AST and TimeSformer.

    timm         `cls_token`, `blocks.0.attn.qkv.weight`, ..., a state dict; or the `.npz` of the JAX original
    AST          `module.v.blocks.0.attn.qkv.weight`, ..., with `module.mlp_head.*`
    TimeSformer  `{"model_state": {"model.blocks.0.temporal_attn.qkv.weight": ...}}`

Every weight must be known and none may lack; heads of classifiers are left out.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceptune.config.recipe import read_yaml
from perceptune.errors import UserError, error_prefix
from perceptune.models.pretrained import appearing_folder, require_new_folder
from perceptune.utils.torch_files import read_torch_file, require_file

MODALITIES = {"vit": "image", "ast": "audio", "timesformer": "video"}
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of the published widths: the weights do not determine it
EPSILON = 1e-6  # of the originals' layer norms; the default of transformers differs
_CONTAINERS = ("model_state", "state_dict", "model")
_WRAPPERS = ("module.", "model.")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Mapping from an original's names to those of transformers; see `encoder_layouts.yaml`."""

    model: str  # class of transformers
    blocks: str  # path of its blocks
    splits_qkv: bool
    tensors: dict[str, str]
    modules: dict[str, str]
    in_block: dict[str, str]
    unused: list[str]
    preprocessor: dict[str, Any]

    def names(self, depth: int) -> dict[str, str]:
        """Return the original's name of each weight, mapped to its name in transformers."""
        modules = self.modules | {
            f"blocks.{i}.{theirs}": f"{self.blocks}.{i}.{ours}"
            for i in range(depth)
            for theirs, ours in self.in_block.items()
        }
        pairs = [(f"{theirs}.{{}}", f"{ours}.{{}}") for theirs, ours in modules.items()]
        kinds = ("weight", "bias")
        return self.tensors | {theirs.format(kind): ours.format(kind) for theirs, ours in pairs for kind in kinds}


@dataclass(frozen=True)
class Heard:
    """An AST's spectrogram settings; its position embeddings determine only the number of patches."""

    mels: int = 128
    frames: int = 1024
    stride: int = 10


def import_encoder(file: str | Path, out: str | Path, *, heads: int | None = None, heard: Heard = Heard()) -> str:
    """Write the encoder in `file` as a folder of transformers, `out`; return its kind.

    `heads` is the number of attention heads if the width is not a published one. Raises `UserError` for weights that
    are unknown, missing or of another shape, and for an existing folder.
    """
    file, out = Path(file), Path(out)
    require_new_folder(out)
    require_file(file, "file of weights")
    layouts = read_yaml(Path(__file__).with_name("encoder_layouts.yaml"))
    weights, told = _of_jax(file, layouts["jax"]) if file.suffix == ".npz" else (read_weights(file), None)
    kind = "timesformer" if "time_embed" in weights else "ast" if "dist_token" in weights else "vit"
    layout = Layout(**layouts[kind])
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(layout.unused))}
    depth = 1 + max((int(match[1]) for name in weights if (match := _BLOCK.fullmatch(name))), default=-1)
    with error_prefix(str(file)):
        names = layout.names(max(depth, 1))
        _require_whole(layout, weights, names)
        config = _config(kind, weights, depth, told if heads is None else heads, heard)
        model = _loaded(layout, config, weights, names)
    with appearing_folder(out) as folder:
        model.save_pretrained(folder)
        if layout.preprocessor:
            (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(layout, config), indent=2))
    return kind


def read_weights(file: Path) -> Weights:
    """Return the weights by timm's names without their wrappers, in float32."""
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
        raise UserError(f"{file}: holds no table of weights, alone or at {_listed(_CONTAINERS)}")
    weights = {str(name): tensor.float() for name, tensor in data.items()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    # AST's own classifier is stored beside its transformer.
    return {name.removeprefix("v."): tensor for name, tensor in weights.items()}


def _of_jax(file: Path, theirs: dict[str, dict[str, str]]) -> tuple[Weights, int | None]:
    """Return the JAX original's arrays by timm's names, and the number of heads, which is an array axis there."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name.removeprefix("opt/target/"): np.asarray(stored[name]) for name in stored.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: the weights cannot be read ({error})") from error
    named: dict[str, Any] = {}
    joined: dict[str, dict[str, Any]] = {}
    heads: int | None = None
    for name, array in arrays.items():
        match = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", name)
        block, modules = (f"blocks.{match[1]}.", theirs["in_block"]) if match else ("", theirs["modules"])
        module, _, kind = (match[2] if match else name).rpartition("/")
        if kind not in theirs["kinds"]:
            named[theirs["tensors"].get(name, name)] = array
        elif match and (part := re.fullmatch(r"MultiHeadDotProductAttention_1/(query|key|value)", module)):
            heads = int(array.shape[-2])
            flat = array.reshape(array.shape[0], -1).T if kind == "kernel" else array.reshape(-1)
            joined.setdefault(f"{block}attn.qkv.{theirs['kinds'][kind]}", {})[part[1]] = flat
        elif module in modules:
            if kind == "kernel":
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.reshape(-1, array.shape[-1]).T
            named[f"{block}{modules[module]}.{theirs['kinds'][kind]}"] = array
        else:
            named[name] = array
    for name, parts in joined.items():
        if missing := [part for part in ("query", "key", "value") if part not in parts]:
            raise UserError(f"{file}: lacks `{missing[0]}` of `{name}`")
        named[name] = np.concatenate([parts[part] for part in ("query", "key", "value")])
    return {name: torch.from_numpy(np.ascontiguousarray(array)).float() for name, array in named.items()}, heads


def _require_whole(layout: Layout, weights: Weights, names: dict[str, str]) -> None:
    """Raise `UserError` naming weights that the layout does not have and those it requires."""
    if unknown := sorted(weights.keys() - names.keys()):
        raise UserError(f"has unknown weights of a {layout.model}: {_listed(unknown)}")
    if missing := [name for name in names if name not in weights]:
        raise UserError(f"lacks weights of a {layout.model}: {_listed(missing)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _config(kind: str, weights: Weights, depth: int, heads: int | None, heard: Heard) -> Any:
    """Return the config of transformers, from the weights' shapes and the given settings."""
    import transformers

    width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
    heads = HEADS.get(width) if heads is None else heads
    if heads is None:
        raise UserError(f"{width} wide, which is no published width: say how many attention heads by --heads")
    if width % heads:
        raise UserError(f"{width} wide, which {heads} attention heads do not divide: say how many by --heads")
    shape: dict[str, Any] = {
        "hidden_size": width, "num_attention_heads": heads, "patch_size": patch, "layer_norm_eps": EPSILON,
        "num_hidden_layers": depth, "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
    }  # fmt: skip
    positions = weights["pos_embed"].shape[1]
    if kind == "ast":
        high, long = ((length - patch) // heard.stride + 1 for length in (heard.mels, heard.frames))
        if positions != 2 + high * long:
            raise UserError(
                f"has positions of {positions - 2} patches, but {heard.mels} mel bands and {heard.frames} "
                f"frames at steps of {heard.stride} are {high * long}: say --mels, --frames and --stride"
            )
        shape |= dict.fromkeys(("frequency_stride", "time_stride"), heard.stride)
        return transformers.ASTConfig(**shape, num_mel_bins=heard.mels, max_length=heard.frames)
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise UserError(f"`pos_embed` has {positions - 1} patches, which make no square")
    if kind == "timesformer":
        frames = weights["time_embed"].shape[1]
        return transformers.TimesformerConfig(**shape, image_size=side * patch, num_frames=frames)
    return transformers.ViTConfig(**shape, image_size=side * patch)


def _loaded(layout: Layout, config: Any, weights: Weights, names: dict[str, str]) -> Any:
    """Return the model of transformers with the weights. Raises `UserError` for one of another shape."""
    import transformers

    given = {"add_pooling_layer": False} if layout.model == "ViTModel" else {}
    with torch.device("meta"):
        model = getattr(transformers, layout.model)(config, **given)
    wanted, renamed = model.state_dict(), Weights()
    for name, tensor in weights.items():
        parts = {names[name]: tensor}
        if layout.splits_qkv and ".attn.qkv." in name:
            module, _, kind = names[name].rpartition(".")
            parts = {f"{module}.{one}_proj.{kind}": part for one, part in zip("qkv", tensor.chunk(3), strict=True)}
        for ours, part in parts.items():
            if part.shape != wanted[ours].shape:
                found, fitting = tuple(part.shape), tuple(wanted[ours].shape)
                raise UserError(f"`{name}` does not fit: its part of shape {found} would be {fitting}")
            renamed[ours] = part.contiguous()
    model.load_state_dict(renamed, assign=True)
    return model


def _preprocessor(layout: Layout, config: Any) -> dict[str, Any]:
    """Return the layout's preprocessor config for the sizes of these weights."""
    if layout.model == "ASTModel":
        return {**layout.preprocessor, "num_mel_bins": config.num_mel_bins, "max_length": config.max_length}
    return {**layout.preprocessor, "size": dict.fromkeys(("height", "width"), config.image_size)}
