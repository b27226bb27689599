"""Locating and loading base models: names, folders, configurations, and errors for those that do not load."""

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from perceptune.errors import UserError, disk_errors
from perceptune.models.model_folders import has_vocabulary, is_path, missing_model, require_model, tokenizer_advice
from perceptune.utils import downloads
from perceptune.utils.assets import ASSETS
from perceptune.utils.atomic_io import whole_folder
from perceptune.utils.transformers_loading import quiet_loading

CONFIGS = Path(__file__).parent / "published_configs"
# ImportError: for models that need a package, such as those of GPTQ.
_FAILURES = (
    OSError, ValueError, KeyError, RuntimeError, ImportError, pickle.UnpicklingError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


def resolve(name: str, default: str, meta: bool, *, files: Sequence[str] = (), is_lm: bool = False) -> str:
    """Return the folder or hub id for a name; `default` and the names of assets are downloaded if absent.

    Single files whose names end in one of `files` are accepted as models, too. Raises `UserError` for a path that does
    not exist, and for something other than a model, e.g. an adapter, which only an LM (`is_lm`) may be.
    """
    asset = default if name == "default" else name
    if meta and (published := CONFIGS / f"{asset.replace('/', '--')}.json").is_file():
        return str(published)
    if asset in ASSETS:
        return str(downloads.path(asset))
    place = Path(name).expanduser()
    if place.exists():
        require_model(name, place, (".json", *files), is_lm=is_lm)
    elif is_path(name):
        raise UserError(missing_model(name))
    return str(place) if is_path(name) else name


def read_config(where: str, revision: str | None) -> Any:
    """Read the config of transformers from a folder, a repository or a JSON file."""
    from transformers import AutoConfig

    if where.endswith(".json"):
        data = json.loads(Path(where).read_text(encoding="utf-8"))
        return AutoConfig.for_model(data.pop("model_type"), **data)
    return AutoConfig.from_pretrained(where, revision=revision)


@contextlib.contextmanager
def loading(what: str, name: str = "default") -> Iterator[None]:
    """Convert errors of transformers for a wrong name or an unsuitable model to one line; hide its progress bars.

    `name` is the user's name for the model, which the error questions first if no hub has it.
    """
    try:
        with quiet_loading():
            yield
    except UserError as error:  # raised by an encoder, about its files
        if not (doubt := _doubt(name, error.__cause__)):
            raise
        raise UserError(f"{what}: {doubt} ({error})") from error
    except _FAILURES as error:
        if doubt := _doubt(name, error):
            raise UserError(f"{what}: {doubt} ({_reason(error)})") from error
        raise UserError(f"{what} cannot be loaded: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error of transformers, or what it means for a pickled file."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "a .bin file holds more than tensors, or is none: reading it could run code, so it is refused; take the "
            "model's safetensors"
        )
    if "PytorchStreamReader" in str(error):
        return "a .bin file is damaged or cut off: download it again"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def explaining_quantization(name: str, config: Any) -> Iterator[None]:
    """Convert errors of a checkpoint that is quantised already to one line that says so."""
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, Mapping) else getattr(stored, "quant_method", None)
    try:
        yield
    except _FAILURES as error:
        if not method:
            raise
        raise UserError(
            f"lm `{name}` is quantised ({method}), which cannot be loaded here ({_reason(error)}): name the model it "
            "was made from, with `lm.quantization: 8bit` or `4bit` to save memory"
        ) from error


def _doubt(name: str, cause: BaseException | None) -> str:
    """Return what may be wrong with a name that led to `cause`; empty for one that exists on this machine."""
    here = name == "default" or name in ASSETS or Path(name).expanduser().exists()
    if here or not isinstance(cause, OSError):
        return ""
    known = ["default", *ASSETS, *(path.stem.replace("--", "/") for path in CONFIGS.glob("*.json"))]
    return missing_model(name, known)


def load_tokenizer(name: str, where: str, revision: str | None) -> Any:
    """Load the fast tokenizer of an LM. Raises `UserError` for any other, naming what is wrong with its files."""
    from transformers import AutoTokenizer

    advice = tokenizer_advice(Path(where))
    if advice and not has_vocabulary(Path(where)):  # transformers would create an empty one
        raise UserError(f"lm `{name}`: {advice}")
    try:
        with loading(f"tokenizer of lm `{name}`", name):
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
    except UserError as error:
        raise UserError(f"lm `{name}`: {advice}" if advice else str(error)) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"lm `{name}`: {advice or 'its tokenizer is a slow one, of Python code; name an LM with a fast one'}"
        )
    return tokenizer


def require_new_folder(folder: Path) -> None:
    """Raise `UserError` for an existing folder."""
    if folder.exists():
        raise UserError(f"`{folder}` is there already: name another folder")


@contextlib.contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary model folder to write to, renamed when complete. Hides transformers' progress bars."""
    with disk_errors(folder), whole_folder(folder) as new:
        with quiet_loading():
            yield new
        for weights in new.glob("*.safetensors"):  # safetensors makes its files readable by their owner only
            weights.chmod((new / "config.json").stat().st_mode)


# The model that `default` stands for.
DEFAULT_LM = "smollm2-135m-instruct"


# The image encoder serves videos, too: averaged over frames. On audio Whisper did better than spectrograms as images.
DEFAULT_ENCODERS = {"image": "dinov2-small", "video": "dinov2-small", "audio": "whisper-base"}
