"""PEFT layers beside linear maps of frozen models, owned by the method.

A model's module tree keeps its frozen modules, so its weights and their names do not change: an attribute beside
each targeted module makes the model's own code call PEFT's layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.parts.peft_layers import PeftLayers, linear_maps
from perceptune.methods.slots._injection import Injection
from perceptune.methods.slots._method import EncoderShape, Site

INJECTED = "injected"  # value of `layers_to_transform`: from the first layer that media enter to the last


class PeftInjection(Injection):
    """An injecting method with PEFT layers in the LM's blocks, configured by `given` under the recipe's `key`."""

    def __init__(
        self, options: Any, lm: FrozenLM, shapes: Mapping[str, EncoderShape], key: str, given: Mapping[str, Any]
    ) -> None:
        super().__init__(options, lm, shapes)
        linear = {path: kind for layer in lm.layers for path, kind in linear_maps(layer).items()}
        if given.get("layers_to_transform") == INJECTED:
            given = {**given, "layers_to_transform": list(range(self.range.start, lm.n_layers))}
        self.peft = PeftLayers(lm.model, given, key, linear)
        for name in self.peft.names:
            if not name.startswith(f"{lm.layers_path}."):
                raise UserError(f"{key}.target_modules: `{name}` is not inside the LM's blocks (`{lm.layers_path}`)")
        start = len(lm.layers_path) + 1
        self._places = [(int(name[start:].partition(".")[0]), name) for name in self.peft.names]

    def attach(self, lm: FrozenLM) -> None:
        super().attach(lm)
        self.peft.attach()

    @property
    def first_layer(self) -> int:
        return min(super().first_layer, *(layer for layer, _ in self._places))

    def prompt_group(self) -> Sequence[nn.Module | nn.Parameter]:
        return [*super().prompt_group(), self.peft]

    def sites(self) -> list[Site]:
        return super().sites() + [Site(layer, name, f"{self.peft.kind} of PEFT") for layer, name in self._places]
