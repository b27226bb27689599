"""Reads the weights of a model once and hands out copies: for tests that load the same tiny models again and again."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import transformers


def share_loaded(patch: pytest.MonkeyPatch) -> None:
    """While `patch` holds, only the first `from_pretrained` of a class with the same arguments reads files.

    The folders that are read must not change meanwhile.
    """
    read = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    first: dict[tuple[Any, ...], Mould] = {}

    def from_pretrained(kind: type[Any], where: Any, *, config: Any = None, **given: Any) -> Any:
        key = (kind, str(where), _said(config), *(f"{name}={value}" for name, value in sorted(given.items())))
        if key not in first:
            first[key] = Mould(read(kind, where, config=config, **given))
        return first[key].copy()

    patch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(from_pretrained))


def _said(config: Any) -> str:
    return "" if config is None else f"{config.to_dict()} {config._attn_implementation}"


class Mould:
    """What copies of a model are made of: as `copy.deepcopy` makes them, but several times as fast."""

    def __init__(self, model: Any) -> None:
        self.tensors: list[torch.Tensor] = []
        file = io.BytesIO()
        _Pickler(file, self.tensors).dump(model)
        self.rest = file.getvalue()

    def copy(self) -> Any:
        """A copy that shares nothing with the others."""
        return _Unpickler(io.BytesIO(self.rest), self.tensors).load()


class _Pickler(pickle.Pickler):
    """Puts tensors aside; one that stands in two places, such as a tied head, is put there once."""

    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors, self.places = tensors, dict[int, int]()

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, torch.Tensor):
            return None
        if id(thing) not in self.places:
            self.places[id(thing)] = len(self.tensors)
            self.tensors.append(thing)
        return self.places[id(thing)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self.tensors, self.copied = tensors, dict[int, torch.Tensor]()

    def persistent_load(self, place: Any) -> torch.Tensor:
        if place not in self.copied:
            self.copied[place] = copy.deepcopy(self.tensors[place])
        return self.copied[place]
