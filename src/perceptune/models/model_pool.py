"""Sharing of one frozen LM and encoder by several runs: each run's hooks and layers are detached while others run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from perceptune.config.recipe import Recipe
from perceptune.config.schema import EncoderConfig, LMConfig
from perceptune.encoders.base import Encoder
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.models.build import build
from perceptune.models.slots.build import load_encoder_of, load_lm

# Where a module stores what methods add: hooks by number, and (PEFT) layers in front of a submodule.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")

ModuleEntry = tuple[dict[Any, Any], Any, Any]  # a dictionary of a module, a key of it, its value


class Attachments:
    """Additions to an LM's modules since construction, removed by `take_off`; `on` restores them temporarily."""

    def __init__(self, lm: nn.Module) -> None:
        self._lm = lm
        self._before = {(id(place), key) for place, key, _ in _entries(lm)}
        self._added: list[ModuleEntry] = []

    def take_off(self) -> None:
        """Record the additions since then, and remove them."""
        self._added = [entry for entry in _entries(self._lm) if (id(entry[0]), entry[1]) not in self._before]
        self._remove()

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._added)

    @contextmanager
    def on(self) -> Iterator[None]:
        for place, key, value in self._added:
            place[key] = value
        try:
            yield
        finally:
            self._remove()

    def _remove(self) -> None:
        for place, key, _ in self._added:
            place.pop(key, None)


def _entries(lm: nn.Module) -> list[ModuleEntry]:
    found: list[ModuleEntry] = []
    for module in lm.modules():
        for name in _HOOKS:
            hooks = getattr(module, name)
            found += [(hooks, key, value) for key, value in hooks.items()]
        found += [(vars(module), key, value) for key, value in vars(module).items() if isinstance(value, nn.Module)]
    return found


class ModelPool:
    """Shares equal frozen parts between recipes. A part that a run changes is not shared."""

    def __init__(self) -> None:
        self._lms: dict[str, FrozenLM] = {}
        self._encoders: dict[str, Encoder] = {}
        self.lends_lm, self.lends_encoders = True, True

    def plan(self, recipe: Recipe) -> None:
        """Determine, without weights, which frozen parts the next run trains: they are not shared."""
        method = build(recipe, meta=True).method
        self.lends_lm, self.lends_encoders = not method.trains_lm, not method.trains_encoders

    def lm(self, config: LMConfig, dtype: str) -> FrozenLM:
        if not self.lends_lm:
            return load_lm(config, dtype=dtype)
        key = json.dumps([config.model_dump(), dtype])
        if key not in self._lms:
            self._lms[key] = load_lm(config, dtype=dtype)
        return self._lms[key]

    def encoder(self, modality: str, config: EncoderConfig) -> Encoder:
        if not self.lends_encoders:
            return load_encoder_of(modality, config)
        key = json.dumps([modality, config.model_dump(exclude={"views", "max_media"})])
        if key not in self._encoders:
            self._encoders[key] = load_encoder_of(modality, config)
        return self._encoders[key]


class Borrowed:
    """The pool's parts for one run; records what the run attaches to its LM.

    A run whose backbone cannot share uses its own copy.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._pool, self.encoder = pool, pool.encoder
        self.attachments = Attachments(nn.Module())

    def lm(self, config: LMConfig, dtype: str) -> FrozenLM:
        lm = self._pool.lm(config, dtype)
        self.attachments = Attachments(lm)
        return lm
