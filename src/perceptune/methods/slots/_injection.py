"""Projected encoder tokens written into slots of a frozen LM, with prompts, adapters and unfrozen weights as options.

The class behind eP-ALM and its baselines at the input, which differ in their options.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.encoders.base import TokenSelection, describe_selection
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.parts.unfrozen import UnfrozenParameters
from perceptune.methods.slots._adapters import AdapterSites
from perceptune.methods.slots._connector import Connector, LayerScale, SoftPrompt
from perceptune.methods.slots._disturbance import drop_media
from perceptune.methods.slots._mappers import count_tokens
from perceptune.methods.slots._method import EncoderShape, Method, Site
from perceptune.methods.slots._options import InjectionOptions
from perceptune.methods.slots._order import MediumOrder
from perceptune.methods.slots._output_scales import OutputScales, linear_scales, norm_scales
from perceptune.methods.slots._token_layout import TokenLayout, layout_of
from perceptune.types import Features, Slots


class Injection(Method):
    """Base of the injecting methods; `shapes` maps each modality to its encoder's shape.

    Each modality has a slot column (or one per token) and connectors of its own.
    """

    Options = InjectionOptions

    def __init__(self, options: InjectionOptions, lm: FrozenLM, shapes: Mapping[str, EncoderShape]) -> None:
        super().__init__()
        self.options = options
        self.shapes = dict(shapes)
        self._levels = _wanted_levels(options)
        self.injected = _injected(options, lm.n_layers, self._levels)
        self.range = range(min(self.injected), max(self.injected) + 1)
        for modality in shapes:
            self._check_levels(modality)
        self.connectors = nn.ModuleDict(
            {
                name: self._make_connector(lm, shape, layout_of(options.tokens, shape, name))
                for name, shape in shapes.items()
            }
        )
        if self.is_in_text and set(self.injected) != {0}:
            raise UserError(
                f"method.slot_positions: sequential is for media that enter at layer 0 only, and these enter at "
                f"{', '.join(map(str, self.injected))}: `first: 0, last: 0`, as in `limber`; late ones are `zero`"
            )
        self.orders = nn.ModuleDict(
            {
                name: MediumOrder(shape.max_media - 1, len(self._levels), self._media_size(lm, shape))
                for name, shape in shapes.items()
                if shape.max_media > 1 and not self.is_in_text
            }
        )
        self.layer_scales = nn.ModuleDict()
        if options.per_layer != "none":
            norm = options.per_layer == "norm-scale-bias"
            for name in shapes:
                self.layer_scales[name] = LayerScale(
                    len(self.injected), lm.hidden_size, norm=norm, eps=options.mapper_eps
                )
        self._lm_layers = lm.n_layers
        self.prompt: SoftPrompt | None = None
        if options.prompt != "none":
            tokens = options.prompt_tokens * (lm.n_layers if options.prompt_at == "every_layer" else 1)
            size = lm.prompt_size if options.prompt_at == "input" else lm.hidden_size
            self.prompt = SoftPrompt(tokens, size, mlp=options.prompt == "mlp", std=options.prompt_std)
        self.adapters: AdapterSites | None = None
        if options.adapters:
            self.adapters = AdapterSites(
                lm, options.adapter_at, options.adapter_factor, scaled=options.adapter_scaled,
                parallel=options.adapter_form == "parallel",
            )  # fmt: skip
        self.tuned = nn.ModuleDict()
        if options.tune_norms != "none":
            self.tuned["norms"] = norm_scales(lm, self._tuned_layers(options.tune_norms))
        if options.tune_biases != "none":
            self.tuned["biases"] = linear_scales(lm, self._tuned_layers(options.tune_biases))
        self.unfrozen = nn.ModuleDict()
        self._project_prompt = lm.project_prompt

    def _media_size(self, lm: FrozenLM, shape: EncoderShape) -> int:
        """Return the width of a modality's mapped tokens."""
        return lm.hidden_size

    def _make_connector(self, lm: FrozenLM, shape: EncoderShape, layout: TokenLayout) -> nn.Module:
        return Connector(self.options, len(self._levels), shape.dim, self._media_size(lm, shape), layout)

    def attach(self, lm: FrozenLM) -> None:
        for scales in self._scales():
            scales.attach()
        if self.adapters is not None:
            self.adapters.attach()

    def unfreeze(self, lm: FrozenLM, encoders: Mapping[str, nn.Module]) -> None:
        if self.trains_lm:
            self.unfrozen["lm"] = UnfrozenParameters("the LM", lm.model.named_parameters())
        if "encoder" in self.options.unfreeze:
            for modality, encoder in encoders.items():
                self.unfrozen[modality] = UnfrozenParameters(f"the {modality} encoder", encoder.named_parameters())

    @property
    def trains_lm(self) -> bool:
        return "lm" in self.options.unfreeze

    @property
    def trains_encoders(self) -> bool:
        return "encoder" in self.options.unfreeze

    @property
    def first_layer(self) -> int:
        at_input = self.prompt is not None and self.options.prompt_at != "first_injected"
        if at_input or self.adapters is not None or self.trains_lm:
            return 0
        return min([self.range.start, *(site.layer for scales in self._scales() for site in scales.sites())])

    @property
    def slots_see_text(self) -> bool:
        return self.options.slot_mask == "official"

    @property
    def is_in_text(self) -> bool:
        return self.options.slot_positions == "sequential"

    @property
    def standardizes(self) -> bool:
        return self.options.standardize

    def levels(self, modality: str) -> list[int]:
        n = self.shapes[modality].n_layers
        return [level if level >= 0 else n + level for level in self._levels]

    def tokens(self, modality: str) -> TokenSelection:
        return self.options.tokens

    @classmethod
    def count_slots(cls, options: InjectionOptions, shape: EncoderShape, modality: str) -> int:
        return count_tokens(options, layout_of(options.tokens, shape, modality))

    def set_statistics(self, modality: str, mean: Tensor, std: Tensor) -> None:
        connector: Any = self.connectors[modality]
        connector.mean.copy_(mean[:, None])
        connector.std.copy_(std[:, None])

    @property
    def starts_from_answers(self) -> bool:
        return self.options.connector_init == "answers"

    def mappers(self) -> nn.Module | None:
        return self.connectors

    def entries(self) -> list[int]:
        layers = [[layer for layer, own in self.injected.items() if own == level] for level in range(len(self._levels))]
        return [min(own) for own in layers]

    def fit_connections(self, modality: str, features: Tensor, wanted: Mapping[int, Tensor]) -> None:
        connector: Any = self.connectors[modality]
        for level, layer in enumerate(self.entries()):
            connector.fit(level, features[:, level].mean(1), wanted[layer])

    def level_of(self, layer: int) -> int:
        """Return the level (from 0, in the order of `levels`) that enters an injected LM layer."""
        return self.injected[layer]

    def build_slots(self, features: Mapping[str, Features], batch: int) -> list[Slots]:
        slots = [
            slot for name, given in features.items() if bool(given.present.any()) for slot in self._of(name, given)
        ]
        prompt = [] if self.prompt is None else [self._prompt_slots(self.prompt(), batch)]
        return prompt + slots if self.options.order == "prompt-slots" else slots + prompt

    def _of(self, modality: str, given: Features) -> Iterator[Slots]:
        """Yield the slots of the first medium of each row, of the second, and so on."""
        for order, one in enumerate(given.by_order()):
            if self.options.media_dropout:
                one = drop_media(modality, one, self.options.media_dropout)
                if not one.present.any():
                    continue
            projected = self.connectors[modality](one)
            if modality in self.orders:
                projected = self.orders[modality](projected, order)
            yield self._slots_of(modality, projected, one.present, order)

    def _slots_of(self, modality: str, projected: list[Tensor], present: Tensor, order: int) -> Slots:
        """Return the slots of a medium from its mapped tokens (B, N, width) of each level."""
        states = {layer: projected[level] for layer, level in self.injected.items()}
        if modality in self.layer_scales:
            states = self.layer_scales[modality](states)
        return Slots(modality, self.range.start, states, present, sees_text=self.slots_see_text, order=order)

    def _prompt_slots(self, prompt: Tensor, batch: int) -> Slots:
        present = torch.ones(batch, dtype=torch.bool)
        if self.options.prompt_at == "every_layer":
            parts = prompt.split(self.options.prompt_tokens)
            return Slots("prompt", 0, {layer: part[None] for layer, part in enumerate(parts)}, present)
        entry = 0
        if self.options.prompt_at == "input":
            prompt = self._project_prompt(prompt)
        else:
            entry = self.range.start
        return Slots("prompt", entry, {entry: prompt[None]}, present)

    def prompt_group(self) -> Sequence[nn.Module | nn.Parameter]:
        return [*(part for part in (self.prompt, self.adapters) if part is not None), *self._scales()]

    def unfrozen_group(self) -> Mapping[str, tuple[nn.Module, float]]:
        rates = self.options.unfreeze
        return {
            f"unfrozen {name}": (part, rates["lm" if name == "lm" else "encoder"])
            for name, part in self.unfrozen.items()
        }

    def sites(self) -> list[Site]:
        sites = []
        for modality, shape in self.shapes.items():
            what = describe_selection(self.options.tokens)
            if self.options.mapper != "linear":
                what = f"{self.count_slots(self.options, shape, modality)} tokens by `{self.options.mapper}` of {what}"
            for layer, level in self._encoder_layers(modality).items():
                sites.append(Site(layer, self._place_of(modality), f"{what} of encoder layer {level} (0-based)"))
        vectors = f"{self.options.prompt_tokens} trained vectors"
        sites += [Site(layer, "slots `prompt`", vectors) for layer in self._prompt_layers()]
        if self.adapters is not None:
            sites += self.adapters.sites()
        for scales in self._scales():
            sites += scales.sites()
        if self.trains_lm:
            sites += [Site(layer, "all of its weights", "trained themselves") for layer in range(self._lm_layers)]
        return sites

    def _place_of(self, modality: str) -> str:
        """Return where a modality enters a layer, for `sites`."""
        return f"slot `{modality}`"

    def describe_inputs(self) -> dict[str, dict[str, Any]]:
        media = {
            name: {"layers": shape.n_layers, "enters": self._encoder_layers(name)}
            for name, shape in self.shapes.items()
        }
        prompt = self._prompt_layers()
        return {
            "media": media, "prompt": {"layers": prompt, "vectors": self.options.prompt_tokens if prompt else 0},
        }  # fmt: skip

    def _tuned_layers(self, where: str) -> range:
        return range(self.range.start if where == "injected" else 0, self._lm_layers)

    def _scales(self) -> list[OutputScales]:
        return [cast(OutputScales, part) for part in self.tuned.values()]

    def _encoder_layers(self, modality: str) -> dict[int, int]:
        """Return the encoder layer that enters each injected LM layer."""
        levels = self.levels(modality)
        return {layer: levels[level] for layer, level in self.injected.items()}

    def _prompt_layers(self) -> list[int]:
        """Return the LM layers at which trained vectors enter."""
        layers = {"first_injected": [self.range.start], "every_layer": list(range(self._lm_layers))}
        return [] if self.prompt is None else layers.get(self.options.prompt_at, [0])

    def _check_levels(self, modality: str) -> None:
        n = self.shapes[modality].n_layers
        if self.options.levels is None and self.options.inject is None and self.options.n_levels > n:
            raise UserError(f"method.n_levels is {self.options.n_levels}, but the {modality} encoder has {n} layers")
        for level in self.levels(modality):
            if not 0 <= level < n:
                raise UserError(f"method: the {modality} encoder has no layer {level}: its layers are 0 to {n - 1}")
        if len(set(self.levels(modality))) < len(self._levels):
            raise UserError(f"method: an encoder layer is named twice: {self._levels}")


def _wanted_levels(options: InjectionOptions) -> list[int]:
    """Return the encoder layers as given: 0-based, or from the end if negative."""
    if options.inject is not None:
        return list(dict.fromkeys(options.inject[layer] for layer in sorted(options.inject)))
    return options.levels or list(range(-options.n_levels, 0))


def _injected(options: InjectionOptions, n_layers: int, levels: Sequence[int]) -> dict[int, int]:
    """Return LM layer -> the level that overwrites the slot there.

    By default in equal steps, rounded down as in the official code; the last level fills the remaining layers.
    """
    if options.inject is not None:
        for layer in options.inject:
            if not 0 <= layer < n_layers:
                raise UserError(f"method.inject: the LM has no layer {layer}: its layers are 0 to {n_layers - 1}")
        return {layer: levels.index(options.inject[layer]) for layer in sorted(options.inject)}
    layers = _layer_range(options, n_layers)
    if len(levels) > len(layers):
        raise UserError(
            f"method.n_levels is {len(levels)}, but only {len(layers)} LM layers are injected: "
            f"the last {len(levels) - len(layers)} would never enter"
        )
    step = len(layers) // len(levels)
    injected = {layer: min((layer - layers.start) // step, len(levels) - 1) for layer in layers}
    if options.refresh == "layer":
        return injected
    return {layer: level for layer, level in injected.items() if injected.get(layer - 1) != level}


def _layer_range(options: InjectionOptions, n_layers: int) -> range:
    """Return the injected layers. Default: the last min(12, L // 2), the LM's last one included."""
    last = n_layers - 1 if options.last is None else options.last
    first = n_layers - min(12, n_layers // 2) if options.first is None else options.first
    if not 0 <= first <= last < n_layers:
        raise UserError(
            f"method.first={first}, method.last={last}: not a range inside the LM's layers 0-{n_layers - 1}"
        )
    return range(first, last + 1)
