"""A Whisper in CTranslate2's format becomes transformers' model with the same weights, or one line says why not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from perceptune.encoders.base import load_encoder
from perceptune.errors import UserError
from perceptune.models.whisper_files import read_ctranslate2, save_whisper
from sounds import encoded, noise, tone

Tensors = dict[str, np.ndarray[Any, Any]]
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
HEAD = (6, "WhisperSpec", 3)


def name_of(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def file_of(tensors: Tensors, head: tuple[int, str, int] = HEAD, alias: str = "decoder/embeddings/weight") -> bytes:
    """The bytes of CTranslate2's format, by its description."""
    version, kind, revision = head
    data = struct.pack("<I", version) + name_of(kind) + struct.pack("<II", revision, len(tensors))
    for name, array in tensors.items():
        data += name_of(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", CODES[array.dtype.name], array.nbytes) + array.tobytes()
    return data + struct.pack("<I", 1) + name_of("decoder/projection/weight") + name_of(alias)


def stored(folder: Path) -> Tensors:
    """The tensors of a folder of transformers as CTranslate2 stores them: joined, keys with a bias of zeros."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    state = {name.removeprefix("model."): tensor.half().numpy() for name, tensor in model.state_dict().items()}
    width = model.config.d_model
    found: Tensors = {}

    def linear(name: str, *sources: str) -> None:
        for leaf in ("weight", "bias"):
            zeros = np.zeros(width, np.float16)
            found[f"{name}/{leaf}"] = np.concatenate([state.get(f"{source}.{leaf}", zeros) for source in sources])

    def norm(name: str, source: str) -> None:
        found[f"{name}/gamma"], found[f"{name}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    for number in (1, 2):
        linear(f"encoder/conv{number}", f"encoder.conv{number}")
    for side, layers in (("encoder", model.config.encoder_layers), ("decoder", model.config.decoder_layers)):
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        found[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        found[f"{side}/num_heads"] = np.array(2, np.int16)
        for layer in range(layers):
            own, source = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            norm(f"{own}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            norm(f"{own}/ffn/layer_norm", f"{source}.final_layer_norm")
            linear(f"{own}/self_attention/linear_0", *(f"{source}.self_attn.{part}_proj" for part in "qkv"))
            linear(f"{own}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            linear(f"{own}/ffn/linear_0", f"{source}.fc1")
            linear(f"{own}/ffn/linear_1", f"{source}.fc2")
            if side == "decoder":
                norm(f"{own}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
                linear(f"{own}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                linear(f"{own}/attention/linear_1", *(f"{source}.encoder_attn.{part}_proj" for part in "kv"))
                linear(f"{own}/attention/linear_2", f"{source}.encoder_attn.out_proj")
    found["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    for flag in (
        "alibi",
        "alibi_use_positive_positions",
        "scale_alibi",
        "scale_embeddings",
        "start_from_zero_embedding",
    ):
        found[f"decoder/{flag}"] = np.array(0, np.int8)
    found["decoder/pre_norm"] = np.array(1, np.int8)
    found["decoder/activation"] = np.array(3, np.int8)
    found["decoder/alignment_layer"] = np.array(-1, np.int16)
    found["decoder/alignment_heads"] = np.array(1, np.int16)
    return found


@pytest.fixture(scope="module")
def tensors(ears: Path) -> Tensors:
    return stored(ears / "whisper")


def converted(folder: Path, data: bytes) -> Path:
    (folder / "model.bin").write_bytes(data)
    save_whisper(folder / "model.bin", folder / "out", TOKENS)
    return folder / "out"


@torch.no_grad()
def test_every_weight_is_where_transformers_has_it(ears: Path, tensors: Tensors, tmp_path: Path) -> None:
    folder = converted(tmp_path, file_of(tensors))
    kind = transformers.WhisperForConditionalGeneration
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    original = kind.from_pretrained(ears / "whisper").half()
    expected = original.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.float16
    given = torch.randn(2, 20, 100)
    torch.testing.assert_close(
        model.float().eval().model.encoder(given).last_hidden_state,
        original.float().eval().model.encoder(given).last_hidden_state,
    )


@torch.no_grad()
def test_the_folder_is_an_encoder_that_averages_where_there_is_sound(tensors: Tensors, tmp_path: Path) -> None:
    encoder = load_encoder(converted(tmp_path, file_of(tensors)))
    x = encoder.load(encoded(tone(700, 0.4) + noise(0.4)))[None]  # 0.4 of 1 second
    assert x.shape == (1, 21, 100)
    everything = encoder(x, [2], "all")
    torch.testing.assert_close(encoder(x, [2])[0, 0, 0], everything[0, 0, :20].mean(0))
    told = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert (told["chunk_length"], told["feature_size"], told["sampling_rate"]) == (1, 20, 16_000)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: array for key, array in tensors.items() if key != name}


def with_one(name: str, array: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.asarray(array)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("encoder/layer_1/ffn/linear_1/bias"), r"lacks 1 of \d+ weights, first `model\.encoder\.layers"),
        (without("encoder/num_heads"), "lacks the tensor `encoder/num_heads`"),
        (without("decoder/layer_0/ffn/linear_0/weight"), "lacks the tensor `decoder/layer_0/ffn"),
        (with_one("encoder/layer_0/extra/weight", np.zeros(2, np.float16)), "unknown tensor `encoder/layer_0/extra"),
        (with_one("encoder/conv2/scale", np.zeros(2, np.float16)), "unknown tensor `encoder/conv2/scale`"),
        (with_one("decoder/activation", np.int8(0)), "has `decoder/activation` 0, which is not a Whisper's"),
        (with_one("encoder/conv1/bias", np.zeros(16, np.int8)), "is quantised: `encoder/conv1/bias` is int8"),
        (with_one("encoder/conv1/bias", np.zeros(3, np.float16)), r"`model\.encoder\.conv1\.bias` has the shape"),
        (with_one("encoder/layer_0/self_attention/linear_0/bias", np.ones(48, np.float16)), "a bias for keys"),
        (with_one("encoder/layer_0/self_attention/linear_0/bias", np.ones(5, np.float16)), "are not 3 equal parts"),
    ],
)  # fmt: skip
def test_other_tensors_are_told_by_name(
    tensors: Tensors, tmp_path: Path, change: Callable[[Tensors], Tensors], said: str
) -> None:
    with pytest.raises(UserError, match=rf"^`model\.bin`.*{said}") as caught:
        converted(tmp_path, file_of(change(tensors)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_one_line(tensors: Tensors, tmp_path: Path) -> None:
    data = file_of(tensors)
    shape = data.index(b"encoder/conv1/weight\0") + len(b"encoder/conv1/weight\0") + 1
    cases = [
        (data[:-1], "cut off"), (data[: len(data) // 2], "cut off"), (data[:3], "cut off"), (b"", "cut off"),
        (data + b"\0", "goes on after its last tensor"),
        (b"<html>not a model</html>", "not a file of CTranslate2"),
        (data[:shape] + struct.pack("<I", 17) + data[shape + 4 :], "`encoder/conv1/weight` of shape"),
        (file_of(tensors, (5, "WhisperSpec", 3)), "not a file of CTranslate2 of version 6"),
        (file_of(tensors, (6, "TransformerSpec", 7)), "holds `TransformerSpec` of revision 7"),
        (file_of(tensors, alias="encoder/conv1/weight"), "its output layer is not its table"),
    ]  # fmt: skip
    for broken, said in cases:
        with pytest.raises(UserError, match=rf"^`model\.bin`.*{said}") as caught:
            converted(tmp_path, broken)
        assert "\n" not in str(caught.value)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 200):  # never another exception
        flipped = bytearray(data)
        flipped[place] ^= int(rng.integers(1, 256))
        (tmp_path / "model.bin").write_bytes(flipped)
        try:
            read_ctranslate2(tmp_path / "model.bin")
        except UserError:
            continue
