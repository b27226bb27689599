"""Leaf files found by name: the file's name is the name of its encoder, method, task, metric or command.

A leaf may define several named settings of one class (`VARIANTS`). Names use hyphens, files underscores. Nothing has
to be registered: to add a leaf, add a file. A third-party leaf is a dotted path `package.module`, accepted from
the command line's recipe only (see `config/recipe.py`), never from a checkpoint.
"""

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from perceptune.errors import UserError, nearest

# Kind -> package of its leaf files.
LEAF_KINDS = {
    "encoders": "encoders",
    "methods": "methods.slots",
    "qformer_methods": "methods.qformer",
    "metrics": "data.metrics",
    "tasks": "data.tasks",
    "commands": "cli.commands",
}
_NOT_LEAVES = {"base"}


class Leaf(NamedTuple):
    """A named entry of one kind: the module that implements it and the defaults of this name."""

    name: str
    module: ModuleType
    defaults: dict[str, Any]


@cache
def leaves(kind: str) -> dict[str, Leaf]:
    """Return every leaf of one kind by name, variants included, in alphabetical order."""
    package = importlib.import_module(f"perceptune.{LEAF_KINDS[kind]}")
    found: dict[str, Leaf] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.ispkg or info.name in _NOT_LEAVES or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        variants: dict[str, dict[str, Any]] = getattr(module, "VARIANTS", {info.name.replace("_", "-"): {}})
        for name, defaults in variants.items():
            found[name] = Leaf(name, module, defaults)
    return dict(sorted(found.items()))


def _third_party(kind: str, name: str) -> Leaf:
    wanted = kind.rpartition("_")[2].removesuffix("s").upper()  # METHOD, TASK, ...
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{kind.removesuffix('s')} `{name}` cannot be imported: {error}") from error
    if not hasattr(module, wanted):
        raise UserError(f"module `{name}` is no {kind.removesuffix('s')}: it defines no `{wanted}`")
    return Leaf(name, module, {})


def leaf(kind: str, name: str) -> Leaf:
    """Return the leaf called `name`. Raises `UserError` with the nearest valid name."""
    if "." in name:
        return _third_party(kind, name)
    known = leaves(kind)
    if name.replace("_", "-") in known:
        return known[name.replace("_", "-")]
    if name in known:
        return known[name]
    raise UserError(f"unknown {kind.removesuffix('s').replace('_', '-')} `{name}`{nearest(name, known)}")
