"""Whisper models in CTranslate2's format (faster-whisper's `model.bin`) as folders of transformers.

The file: version (uint32), name of the model's kind, its revision (uint32), then the number of tensors (uint32) and
each tensor as name, rank (uint8), sizes (uint32), dtype (uint8), number of bytes (uint32) and bytes; last the number of
aliases (uint32) and pairs of names. A name is its length (uint16) and characters with a zero byte at the end; all
numbers are little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from perceptune.errors import UserError, error_prefix
from perceptune.utils.transformers_loading import quiet_loading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tensors = dict[str, "NDArray[np.generic]"]

_VERSION, _KIND, _REVISION = 6, "WhisperSpec", 3
# Numbers of dtypes in the file. Quantised weights (int8) come with scales, which are not read.
_DTYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16"}
_WEIGHTS = ("float32", "float16")
_GELU = 3  # number of the activation
_FRAMES_PER_SECOND, _HOP, _RATE = 100, 160, 16_000

# Parts of a layer: CTranslate2's name -> transformers' names, whose rows it holds one after the other.
_SELF = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_CROSS = {
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
_OUTSIDE = {"encoder/conv1": "encoder.conv1", "encoder/conv2": "encoder.conv2",
            "encoder/layer_norm": "encoder.layer_norm", "decoder/layer_norm": "decoder.layer_norm"}  # fmt: skip
_TABLES = {"encoder/position_encodings/encodings": "encoder.embed_positions.weight",
           "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
           "decoder/embeddings/weight": "decoder.embed_tokens.weight"}  # fmt: skip
_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
# Settings of Whisper's structure: the values that transformers' class has, too.
_SETTINGS = {
    "decoder/activation": _GELU, "decoder/alibi": 0, "decoder/alibi_use_positive_positions": 0, "decoder/pre_norm": 1,
    "decoder/scale_alibi": 0, "decoder/scale_embeddings": 0, "decoder/start_from_zero_embedding": 0,
}  # fmt: skip
_HEADS = ("encoder/num_heads", "decoder/num_heads")
_UNUSED = ("decoder/alignment_heads", "decoder/alignment_layer")  # of time stamps of words
_TIED = {"decoder/projection/weight": "decoder/embeddings/weight"}


def save_whisper(file: Path, out: Path, tokens: Mapping[str, Any]) -> None:
    """Convert a model to a folder for `WhisperForConditionalGeneration`, in the file's dtype, with preprocessing.

    `tokens` are the keys of its config that name tokens. Raises `UserError` for a damaged file, another model,
    quantised weights, and tensors that are missing or unknown.
    """
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    with error_prefix(f"`{file.name}`"):
        tensors = read_ctranslate2(file)
        config = _config(tensors, tokens)
        weights = {name: torch.tensor(array) for name, array in _renamed(tensors, config)}
        with torch.device("meta"):
            model: Any = WhisperForConditionalGeneration(config)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
        _require_equal({name: tuple(shape) for name, shape in expected.items()}, weights)
        model.load_state_dict({**weights, "proj_out.weight": weights["model.decoder.embed_tokens.weight"]}, assign=True)
        model.tie_weights()
    with quiet_loading():
        model.save_pretrained(out)
    seconds = 2 * config.max_source_positions // _FRAMES_PER_SECOND
    WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, sampling_rate=_RATE, hop_length=_HOP, chunk_length=seconds
    ).save_pretrained(out)


def read_ctranslate2(file: Path) -> Tensors:
    """Read the tensors of a Whisper in CTranslate2's format. Raises `UserError` for another kind or a damaged file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        try:
            [version] = _numbers(opened, "I")
            if version != _VERSION:
                raise UserError(f"is not a file of CTranslate2 of version {_VERSION} (its first number is {version})")
            kind, [revision] = _name(opened), _numbers(opened, "I")
            if (kind, revision) != (_KIND, _REVISION):
                raise UserError(f"holds `{kind}` of revision {revision}, not `{_KIND}` of revision {_REVISION}")
            [count] = _numbers(opened, "I")
            tensors = dict(_tensor(opened, size) for _ in range(count))
            [n_aliases] = _numbers(opened, "I")
            aliases = {_name(opened): _name(opened) for _ in range(n_aliases)}
        except (struct.error, UnicodeDecodeError) as error:
            raise UserError(f"is damaged or cut off ({error})") from error
        if opened.read(1):
            raise UserError("is damaged: it goes on after its last tensor")
    if aliases != _TIED:
        raise UserError(f"has the aliases {aliases}, not {_TIED}: its output layer is not its table of embeddings")
    return tensors


def _numbers(opened: BinaryIO, kinds: str) -> tuple[int, ...]:
    form = f"<{kinds}"
    return struct.unpack(form, opened.read(struct.calcsize(form)))


def _name(opened: BinaryIO) -> str:
    [length] = _numbers(opened, "H")
    [name] = cast(tuple[bytes], _numbers(opened, f"{length}s"))
    return name.removesuffix(b"\0").decode("ascii")


def _tensor(opened: BinaryIO, size: int) -> tuple[str, NDArray[np.generic]]:
    import numpy as np

    name = _name(opened)
    [rank] = _numbers(opened, "B")
    shape = _numbers(opened, f"{rank}I")
    code, count = _numbers(opened, "BI")
    if code not in _DTYPES:
        raise UserError(f"is damaged, or too new: tensor `{name}` has dtype number {code}")
    dtype = np.dtype(_DTYPES[code]).newbyteorder("<")
    if math.prod(shape) * dtype.itemsize != count:
        raise UserError(f"is damaged: tensor `{name}` of shape {shape} and dtype {dtype} has {count} bytes")
    if count > size - opened.tell():
        raise UserError(f"is damaged or cut off (tensor `{name}` is not complete)")
    return name, np.frombuffer(opened.read(count), dtype).reshape(shape)


def _config(tensors: Tensors, tokens: Mapping[str, Any]) -> Any:
    """Return the config of transformers that the tensors' shapes describe."""
    from transformers import WhisperConfig

    shapes = {name: array.shape for name, array in tensors.items()}
    needed = ("encoder/conv1/weight", "encoder/layer_0/ffn/linear_0/weight", "decoder/layer_0/ffn/linear_0/weight",
              *_TABLES, *_HEADS, *_SETTINGS)  # fmt: skip
    for name in needed:
        if name not in shapes:
            raise UserError(f"lacks the tensor `{name}`")
    for name, value in _SETTINGS.items():
        if tensors[name] != value:
            raise UserError(f"has `{name}` {tensors[name]}, which is not a Whisper's ({value})")
    width, mels, _ = shapes["encoder/conv1/weight"]
    layers = {part: len({n.split("/")[1] for n in shapes if n.startswith(f"{part}/layer_") and n.count("/") > 2})
              for part in ("encoder", "decoder")}  # fmt: skip
    return WhisperConfig(
        vocab_size=shapes["decoder/embeddings/weight"][0], num_mel_bins=mels, d_model=width,
        encoder_layers=layers["encoder"], encoder_attention_heads=int(tensors["encoder/num_heads"]),
        encoder_ffn_dim=shapes["encoder/layer_0/ffn/linear_0/weight"][0],
        decoder_layers=layers["decoder"], decoder_attention_heads=int(tensors["decoder/num_heads"]),
        decoder_ffn_dim=shapes["decoder/layer_0/ffn/linear_0/weight"][0],
        max_source_positions=shapes["encoder/position_encodings/encodings"][0],
        max_target_positions=shapes["decoder/position_encodings/encodings"][0],
        dtype=str(tensors["encoder/conv1/weight"].dtype), architectures=["WhisperForConditionalGeneration"], **tokens,
    )  # fmt: skip


def _renamed(tensors: Tensors, config: Any) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the weights under transformers' names. Raises `UserError` for an unknown one, and for other dtypes."""
    parts = _parts(config)
    for name, array in tensors.items():
        if name in (*_SETTINGS, *_HEADS, *_UNUSED):
            continue
        place, _, leaf = name.rpartition("/")
        if name not in _TABLES and (place not in parts or leaf not in _LEAVES):
            raise UserError(f"has the unknown tensor `{name}`")
        if array.dtype.name not in _WEIGHTS:
            raise UserError(f"is quantised: `{name}` is {array.dtype.name}; only float16 and float32 are read")
        if name in _TABLES:
            yield f"model.{_TABLES[name]}", array
            continue
        targets = parts[place]
        if array.shape[0] % len(targets):
            raise UserError(f"`{name}` has {array.shape[0]} rows, which are not {len(targets)} equal parts")
        for target, rows in zip(targets, array.reshape(len(targets), -1, *array.shape[1:]), strict=True):
            if target.endswith("k_proj") and leaf == "bias":  # Whisper's keys have none; the file holds zeros
                if rows.any():
                    raise UserError(f"`{name}` has a bias for keys, which no Whisper has")
                continue
            yield f"model.{target}.{_LEAVES[leaf]}", rows


def _parts(config: Any) -> dict[str, tuple[str, ...]]:
    """Return CTranslate2's names of all parts with weights, with transformers' names."""
    parts: dict[str, tuple[str, ...]] = {name: (target,) for name, target in _OUTSIDE.items()}
    for side, count, inside in (
        ("encoder", config.encoder_layers, _SELF), ("decoder", config.decoder_layers, {**_SELF, **_CROSS}),
    ):  # fmt: skip
        for layer in range(count):
            for name, targets in inside.items():
                found = tuple(f"{side}.layers.{layer}.{target}" for target in targets)
                parts[f"{side}/layer_{layer}/{name}"] = found
    return parts


def _require_equal(expected: dict[str, tuple[int, ...]], weights: dict[str, Any]) -> None:
    """Raise `UserError` unless every weight of the model is there, in its shape."""
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"lacks {len(missing)} of {len(expected)} weights, first `{missing[0]}`")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise UserError(f"`{name}` has the shape {tuple(weights[name].shape)}, not {shape}")
