"""The shared form of a run: the method, the recipe without its owner's folders, the card, some answers."""

import copy
import io
import json
import operator
import re
import zipfile
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from perceptune.config.recipe import read_yaml
from perceptune.errors import UserError
from perceptune.evaluation.model_card import OWN, card
from perceptune.evaluation.reference_answers import save_reference_answers, synthetic_samples
from perceptune.models.run_folder import load, read_meta
from perceptune.models.run_location import CARD, FREQUENCIES, META, METHOD, PROOF, RECIPE
from perceptune.utils.atomic_io import write_chunks

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file can hold


class Bundle(NamedTuple):
    """Files by name, and the base models that only this machine has."""

    files: dict[str, bytes]
    local: list[str]


def bundle(run: Path, *, trust: bool = False) -> Bundle:
    """Return the shared form of a run. Loads it once, to store answers on synthetic media.

    Paths of data are cut to their last part; locations of base models stay, because loading the run needs them.
    Raises `UserError` for a run that cannot be loaded.
    """
    meta = read_meta(run)
    own = read_yaml(run / RECIPE)
    recipe, alone = shared_recipe(own), [f"{'.'.join(key)}=0" for key in _neighbour_keys(own)]
    model = load(run, overrides=["cache.features=off", *alone], trust=trust)
    proof = save_reference_answers(run, model, synthetic_samples(model.stores))
    text = card(run) + _own_words(run)
    files = {
        **{name: (run / name).read_bytes() for name in (META, METHOD)}, CARD: text.encode(),
        PROOF: json.dumps(proof, indent=2, ensure_ascii=False).encode(),
        RECIPE: yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode(),
    }  # fmt: skip
    if (run / FREQUENCIES).is_file():
        files[FREQUENCIES] = (run / FREQUENCIES).read_bytes()
    ids = [str(part["id"]) for part in meta.get("base", {}).values()]
    return Bundle(files, [name for name in dict.fromkeys(ids) if _is_path(name)])


def export(run: Path, file: Path, *, trust: bool = False) -> Bundle:
    """Write the shared form of a run as a zip file: the same run gives the same bytes."""
    if file.suffix != ".zip":
        raise UserError(f"`{file}`: name a file that ends in .zip")
    made = bundle(run, trust=trust)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(made.files):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr, member.create_system = 0o644 << 16, 3
            # Not compressed: weights hardly compress, and zlib's bytes depend on its version.
            archive.writestr(member, made.files[name])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_chunks(file, [buffer.getvalue()])
    return made


def shared_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what reveals more of its owner's machine than loading needs."""
    shared = copy.deepcopy({**recipe, "init_from": None})
    for *sections, key in _neighbour_keys(recipe):  # training captions stay with their owner
        reduce(operator.getitem, sections, shared)[key] = 0
    for key in ("task", "eval"):
        if key in shared:
            shared[key] = _without_folders(shared[key])
    if isinstance(cache := shared.get("cache"), dict):
        shared["cache"] = {**cache, "dir": None}
    return shared


def _neighbour_keys(recipe: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys of a stored recipe by which consensus decoding reads the training's captions."""
    others = (recipe.get("eval") or {}).get("others") or {}
    sections: dict[tuple[str, ...], Any] = {("decode",): recipe.get("decode"), **{
        ("eval", "others", name, "decode"): other.get("decode") for name, other in others.items()}}  # fmt: skip
    return [
        (*place, "consensus", key)
        for place, section in sections.items()
        for key in ("neighbours", "regression")
        if ((section or {}).get("consensus") or {}).get(key)
    ]


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_without_folders(inside) for inside in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) and _is_path(value) else value


def _is_path(name: str) -> bool:
    return bool(re.match(r"/|~|\.|[A-Za-z]:[/\\]", name))


def _own_words(run: Path) -> str:
    """Return the user's own text in the card."""
    text = (run / CARD).read_text(encoding="utf-8", errors="replace") if (run / CARD).is_file() else ""
    return text.partition(OWN)[2] or "\n"
