"""Checks of a model folder's weight files before transformers reads them: absent, unfinished, cut off or incomplete."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from perceptune.errors import UserError
from perceptune.models.model_folders import CONFIG, file_names, models_inside

_LOADED = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".tmp")
_OTHER_FORMATS = (".h5", ".msgpack", ".ot", ".pth", ".pt", ".ckpt", ".npz", ".onnx", ".safetensors", ".bin")
_AGAIN = "download it again"


def require_weights(name: str, where: str, *, pickled: bool = True) -> None:
    """Raise `UserError` unless the folder at `where` has whole weight files; `pickled`: whether .bin files count.

    Anything but a folder is accepted: a hub's files are whole.
    """
    place = Path(where)
    names = file_names(place) if place.is_dir() else []
    if CONFIG not in names or _names_others(place):
        return
    found = [file for file in (*_LOADED, *(_PICKLED if pickled else ())) if file in names]
    if not found:
        raise UserError(f"`{name}` {_without_weights(place, names, pickled)}")
    for index in (file for file in found[:1] if file.endswith(".json")):
        for shard in sorted(_shards(place / index)):
            if shard not in names:
                raise UserError(f"`{name}`: {shard} is missing, which {index} names: {_AGAIN}")
    for file in sorted(names):
        if file.endswith(".safetensors"):
            _require_whole(name, place / file)


def _names_others(place: Path) -> bool:
    """Return whether the config names weight files of its own."""
    with suppress(OSError, ValueError, AttributeError):
        return "transformers_weights" in json.loads((place / CONFIG).read_text(encoding="utf-8"))
    return False


def _without_weights(place: Path, names: Sequence[str], pickled: bool) -> str:
    for file in sorted(names):
        if file.endswith(_UNFINISHED):
            return f"is an unfinished download: there is `{file}`; {_AGAIN}"
    if inside := models_inside(place, names):
        return f"has a {CONFIG}, but no weights{inside}"
    if not pickled and any(file in names for file in _PICKLED):
        convert = f"`AutoModel.from_pretrained('{place}').save_pretrained('{place}')`"
        return f"has pickled weights only, which are not read for an encoder: convert them by {convert}"
    others = [file for file in sorted(names) if file.endswith(_OTHER_FORMATS)]
    beside = f"; {', '.join(others[:3])} is not a name or format that transformers loads" if others else ""
    return f"has a {CONFIG}, but no weights ({' or '.join(_LOADED[:1] + _PICKLED[:pickled])}){beside}"


def _shards(index: Path) -> set[str]:
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
        return {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    return set()


def _require_whole(name: str, file: Path) -> None:
    """Raise `UserError` if a file of safetensors is shorter than its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length < size else b""
    with suppress(ValueError, KeyError, AttributeError, TypeError):
        ends = [entry["data_offsets"][1] for key, entry in json.loads(header).items() if key != "__metadata__"]
        if size >= 8 + length + max(ends, default=0):
            return
    raise UserError(f"`{name}`: {file.name} is damaged or cut off after {size:,} bytes: {_AGAIN}")
