"""Diagnosis of a folder or file that is given as a model but is not one: its actual content, and a remedy."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from perceptune.errors import UserError
from perceptune.utils.paths import absence

CONFIG, ADAPTER, TOKENIZER = "config.json", "adapter_config.json", "tokenizer.json"
# Files of weights without a folder and config. A family whose weights are a single file accepts its own.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".npz", ".tflite")
_POINTER = b"version https://git-lfs"
_LARGE = (".safetensors", ".bin", ".gguf", ".json", ".model", ".spm", ".txt", ".pt", ".pth", ".npz")  # in Git LFS
_SLOW = ("vocab.json", "vocab.txt", "merges.txt", "tekken.json")  # and files of SentencePiece and tiktoken
# The packages with which transformers converts them.
_CONVERTERS = {
    ".model": "sentencepiece",
    ".spm": "sentencepiece",
    ".tiktoken": "tiktoken",
    "tekken.json": "mistral-common",
}
_MAX_NAMES = 2_000
_SHOWN = 6


def require_model(name: str, place: Path, taken: Iterable[str] = (".json",), *, is_lm: bool = False) -> None:
    """Raise `UserError` for a path whose file names show that it is not a model of transformers.

    `taken` are suffixes of single files that are accepted as a model; with `is_lm` adapters and GGUF are, too.
    """
    if place.is_file():
        _require_content(name, place)
        if place.suffix.lower() == ".gguf":
            if is_lm:
                return
            raise UserError(f"`{name}` is a GGUF file, {_of_gguf(place.parent, place.name)}")
        if place.suffix.lower() in _WEIGHTS and not place.name.endswith(tuple(taken)):
            raise UserError(f"`{name}` is a file of weights: name the folder with its {CONFIG}{_beside(place.parent)}")
        return
    if not place.is_dir():
        return
    names = file_names(place)
    for file in names:
        _require_content(name, place / file)
    if ADAPTER in names:
        if is_lm:
            return
        raise UserError(
            f"`{name}` is {describe_adapter(read_adapter_config(place))}, not a model: {merging_advice(place)}"
        )
    if is_lm and gguf_in(place):
        return
    if CONFIG not in names:
        raise UserError(f"`{name}` {_without_config(place, names)}")


def missing_model(name: str, known: Iterable[str] = ()) -> str:
    """Return what may be wrong with a name found neither here nor on a hub; `known` are names of hubs."""
    with suppress(OSError):
        found = absence(Path(name).expanduser())
        if not found.is_guess or (is_path(name) and not found.hint):
            return f"no model folder or file `{name}`: {found.why()}"
    folder, wanted = Path(name).expanduser().parent, Path(name).name
    while not folder.is_dir() and folder != folder.parent:
        folder, wanted = folder.parent, folder.name
    near = [str(folder / one) for one in difflib.get_close_matches(wanted, file_names(folder), n=1)]
    near += difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
    hint = f"; did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else ""
    return f"no model folder or file `{name}`{hint}"


def is_path(name: str) -> bool:
    """Return whether a name can only be a path: names on a hub are NAME or USER/NAME."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1


def tokenizer_advice(place: Path) -> str | None:
    """Return what is wrong with the tokenizer in a folder, and a remedy; None if it has a fast one."""
    names = file_names(place)
    if not place.is_dir() or TOKENIZER in names:
        return None
    found = _vocabularies(names)
    if not found:
        return f"`{place}` has no tokenizer: there is no {TOKENIZER}; save the LM's tokenizer into it"
    packages = sorted({package for file in found for ending, package in _CONVERTERS.items() if file.endswith(ending)})
    absent = [package for package in packages if find_spec(package.replace("-", "_")) is None]
    what = f"`{place}` has a slow tokenizer ({', '.join(found)}) and no {TOKENIZER}"
    if absent:
        return f"{what}: transformers converts it with {' and '.join(absent)}: pip install {' '.join(absent)}"
    return f"{what}, and transformers cannot convert it here: save a fast one there, such as its LM's published one"


def has_vocabulary(place: Path) -> bool:
    """Return whether a folder holds files from which a tokenizer can be built."""
    names = file_names(place)
    return TOKENIZER in names or bool(_vocabularies(names))


def _vocabularies(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name in _SLOW or name.endswith((".model", ".spm", ".tiktoken")))


def file_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; of a very large one some, and none of one that cannot be read."""
    with suppress(OSError):
        return sorted(entry.name for entry in islice(folder.iterdir(), _MAX_NAMES))
    return []


def read_adapter_config(place: Path) -> dict[str, Any]:
    """Read the config of an adapter; empty if it cannot be read."""
    about: Any = {}
    with suppress(OSError, ValueError):
        about = json.loads((place / ADAPTER).read_text(encoding="utf-8"))
    return about if isinstance(about, dict) else {}


def describe_adapter(about: Mapping[str, Any]) -> str:
    """Return what an adapter with this config is."""
    base = about.get("base_model_name_or_path")
    return f"an adapter ({about.get('peft_type') or 'PEFT'}){f' of `{base}`' if base else ''}"


def merging_advice(place: Path) -> str:
    """Return how to make a model of an adapter."""
    merge = f"`AutoPeftModelForCausalLM.from_pretrained('{place}').merge_and_unload().save_pretrained('FOLDER')`"
    return f"merge it into its base by {merge}, save the tokenizer there, too, and name that folder"


def gguf_in(place: Path) -> list[str]:
    """Return the names of the LMs in GGUF in a folder; none if it has weights of transformers, too.

    The file of a vision encoder (`mmproj-...`), which lies beside its LM, is not one.
    """
    names = file_names(place)
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return []
    return sorted(name for name in names if name.lower().endswith(".gguf") and not name.lower().startswith("mmproj"))


def _of_gguf(folder: Path, file: str) -> str:
    save = f"from_pretrained('{folder}', gguf_file='{file}').save_pretrained('FOLDER')"
    return (
        "weights for llama.cpp: unpack it into a folder by "
        f"`AutoModelForCausalLM.{save}` and `AutoTokenizer.{save}` (`pip install gguf`), and name that folder"
    )


def _without_config(place: Path, names: list[str]) -> str:
    gguf = sorted(name for name in names if name.lower().endswith(".gguf"))
    if gguf:
        return f"holds a GGUF file, {_of_gguf(place, gguf[0])}"
    if "method.safetensors" in names or {"run.yaml", "meta.json"} <= set(names):
        return "is a run of perceptune, not a model: its own base models are named in its run.yaml"
    if "model_index.json" in names:
        return f"is a pipeline of diffusers: name the folder of one of its models{models_inside(place, names)}"
    inside = models_inside(place, names)
    if inside:
        return f"holds no {CONFIG}{inside}"
    shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"is no model: it holds no {CONFIG}" + (f", only {shown}" if names else " and nothing else")


def models_inside(place: Path, names: Iterable[str]) -> str:
    """Return which subfolder is a model, such as the last checkpoint or a hub's `snapshots/REVISION`; empty without."""
    found = [name for name in names if any((place / name / file).is_file() for file in (CONFIG, ADAPTER))]
    found.sort(key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)], reverse=True)
    found += [path.parent.relative_to(place).as_posix() for path in sorted(place.glob(f"snapshots/*/{CONFIG}"))]
    others = f" (or another of its {len(found)} models)" if len(found) > 1 else ""
    return f"; did you mean `{place / found[0]}`{others}?" if found else ""


def _beside(folder: Path) -> str:
    return f": `{folder}`" if (folder / CONFIG).is_file() else ""


def _require_content(name: str, file: Path) -> None:
    """Raise `UserError` for a pointer of Git LFS in place of a file."""
    if not file.name.endswith(_LARGE):
        return
    with suppress(OSError), file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise UserError(f"`{name}`: {file.name} is a pointer of Git LFS, not the file: run `git lfs pull` there")
