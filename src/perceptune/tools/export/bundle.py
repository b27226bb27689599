"""The shared form of a run: the method, the recipe without its owner's folders, the card, some answers."""

import io
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import yaml

from perceptune.config.recipe import read_yaml
from perceptune.errors import UserError
from perceptune.evaluation.model_card import OWN, card
from perceptune.evaluation.reference_answers import save_reference_answers, synthetic_samples
from perceptune.models.run_folder import load, read_meta
from perceptune.models.run_location import CARD, FREQUENCIES, META, METHOD, PROOF, RECIPE
from perceptune.models.shared_recipe import is_path, neighbour_keys, shared_recipe
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
    recipe, alone = shared_recipe(own), [f"{'.'.join(key)}=0" for key in neighbour_keys(own)]
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
    return Bundle(files, [name for name in dict.fromkeys(ids) if is_path(name)])


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


def _own_words(run: Path) -> str:
    """Return the user's own text in the card."""
    text = (run / CARD).read_text(encoding="utf-8", errors="replace") if (run / CARD).is_file() else ""
    return text.partition(OWN)[2] or "\n"
