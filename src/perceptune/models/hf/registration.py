"""Registration with transformers' auto classes, each when its module is imported: `import perceptune` stays quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# A module of transformers, and ours that registers with it when it is imported.
_REGISTERED_BY = {
    "transformers.models.auto.configuration_auto": "perceptune.models.hf.configuration",
    "transformers.models.auto.modeling_auto": "perceptune.models.hf.modeling",
    "transformers.models.auto.processing_auto": "perceptune.models.hf.processing",
}


class _Registering(Loader):
    """A loader that imports our module once that of transformers is loaded."""

    def __init__(self, loader: Any, ours: str) -> None:
        self._loader, self._ours = loader, ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Load the module, give it its own loader back, and import ours, unless it is just being imported."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module(self._ours)


class _Finder(MetaPathFinder):
    """Finds the modules of the auto classes as the other finders do, and registers with each of them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that we register with; None for all others."""
        if fullname not in _REGISTERED_BY:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _Registering(spec.loader, _REGISTERED_BY[fullname])
                return spec
        return None


def register_when_imported() -> None:
    """Register with the auto classes that are imported already now, with the others when they are."""
    for name, ours in _REGISTERED_BY.items():
        if name in sys.modules:
            importlib.import_module(ours)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
