"""Perceptune: image, audio and video input for any frozen language model, by training under 1 % of the parameters.

Torch and transformers load on first use, so `import perceptune` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from perceptune._version import __version__
from perceptune.errors import UserError
from perceptune.models.hf.registration import register_when_imported
from perceptune.types import Sample

if TYPE_CHECKING:
    from perceptune.config.recipe import Recipe, load_recipe
    from perceptune.evaluation.evaluate import evaluate
    from perceptune.models.base import AdaptedModel
    from perceptune.models.build import build
    from perceptune.models.ensemble import load_ensemble
    from perceptune.models.run_folder import load
    from perceptune.training.trainer import train

__all__ = [
    "AdaptedModel", "Recipe", "Sample", "UserError", "__version__", "build", "evaluate", "load", "load_ensemble",
    "load_recipe", "train",
]  # fmt: skip

_HOMES = {
    "AdaptedModel": "models.base",
    "Recipe": "config.recipe",
    "build": "models.build",
    "evaluate": "evaluation.evaluate",
    "load": "models.run_folder",
    "load_ensemble": "models.ensemble",
    "load_recipe": "config.recipe",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `perceptune` has no attribute `{name}`")
    value = getattr(importlib.import_module(f"perceptune.{_HOMES[name]}"), name)
    globals()[name] = value  # next time without this detour
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_imported()
