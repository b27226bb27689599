"""Where base models come from: names, folders, configurations, and what is wrong with those that do not load."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from perceptune import assets
from perceptune.errors import UserError, nearest

CONFIGS = Path(__file__).parent / "configs"


def resolve(name: str, default: str, meta: bool) -> str:
    """A folder or hub id for a name; `default` and the assets' names are fetched when absent."""
    asset = default if name == "default" else name
    if meta and (published := CONFIGS / f"{asset.replace('/', '--')}.json").is_file():
        return str(published)
    if asset in assets.ASSETS:
        return str(assets.path(asset))
    if name.startswith((".", "/", "~")):
        place = Path(name).expanduser()
        if not place.exists():
            siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
            raise UserError(f"no model folder or file `{name}`{nearest(place.name, siblings)}")
        return str(place)
    return name


def read_config(where: str, revision: str | None) -> Any:
    """The config of transformers in a folder, a repository or a JSON file."""
    from transformers import AutoConfig

    if where.endswith(".json"):
        data = json.loads(Path(where).read_text(encoding="utf-8"))
        return AutoConfig.for_model(data.pop("model_type"), **data)
    return AutoConfig.from_pretrained(where, revision=revision)


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turns what transformers raises for a wrong name or an unfit model into one line; keeps its bars quiet."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{what} cannot be loaded: {first_line}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def require_complete(name: str, info: dict[str, Any]) -> None:
    """Raises `UserError` for weights of the LM `name` that `from_pretrained` did not find or that do not fit."""
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in info.get(kind, ())):
            raise UserError(
                f"lm `{name}`: its weights are incomplete: {len(keys)} {kind.replace('_', ' ')}, first `{keys[0]}`"
            )
