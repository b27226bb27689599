"""Image encoders in stages, without a [CLS]: Swin, ConvNeXt, ResNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.data.media.source import ImageTransform
from perceptune.encoders import base
from perceptune.errors import UserError


class Kind(NamedTuple):
    """Names of the parts of a model family in transformers."""

    model: str  # class of the tower
    stages: str  # dotted path of the list of stages
    arguments: Mapping[str, Any] = MappingProxyType({})  # of its forward pass


_SWIN = {"interpolate_pos_encoding": True}
ARCHITECTURES = {
    "swin": Kind("SwinModel", "encoder.layers", _SWIN),
    "swinv2": Kind("Swinv2Model", "encoder.layers", _SWIN),
    "convnext": Kind("ConvNextModel", "encoder.stages"),
    "convnextv2": Kind("ConvNextV2Model", "encoder.stages"),
    "resnet": Kind("ResNetModel", "encoder.stages"),
}


class Staged(base.ImageEncoder):
    """An encoder whose levels are its stages, usually four: `cls` is the spatial mean of a stage's output.

    Stages differ in width: `dim` is that of the widest, narrower ones are padded with zeros (from which a connector
    learns nothing). The final norm fits only the last stage, which equals transformers' `pooler_output`; the others are
    not normalised. Other `tokens` than `cls` are refused, because their number differs between stages.
    """

    n_tokens = 1

    def __init__(self, tower: nn.Module, transform: ImageTransform) -> None:
        super().__init__()
        self.tower: Any = tower
        self.transform = transform
        config: Any = tower.config
        self.kind = ARCHITECTURES[config.model_type]
        self.n_layers, self.dim = len(config.depths), _width(config)
        self.requires_grad_(False).eval()

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Staged:
        """Read the encoder; see `load_encoder`."""
        transform = base.transform_of(source, _published(config), options)
        least = getattr(config, "patch_size", 4) * 2 ** (len(config.depths) - 1)
        if min(transform.size) < least:
            raise UserError(f"{source}: `size` {min(transform.size)} is too small for its stages; use {least} or more")
        tower = base.build_tower(
            source, config, ARCHITECTURES[config.model_type].model, revision=options.revision,
            dtype=getattr(torch, options.dtype), meta=meta, unused=("classifier.", "embeddings.mask_token"),
        )  # fmt: skip
        return cls(tower, transform).augmenting(options)

    def forward(self, x: Tensor, levels: Sequence[int], tokens: base.TokenSelection = "cls") -> Tensor:
        """Return (B, n_levels, 1, dim) float32. All stages are run."""
        self.check_levels(levels)
        means: dict[int, Tensor] = {}
        stages: Any = self.tower.get_submodule(self.kind.stages)
        hooks = [stages[level].register_forward_hook(partial(_keep, means, level)) for level in levels]
        try:
            out = self.tower(x.to(self.tower.dtype), **self.kind.arguments)
        finally:
            for hook in hooks:
                hook.remove()
        means[self.n_layers - 1] = out.pooler_output.flatten(1)
        return base.pooled_levels(means, levels, self.dim, tokens)

    def settings(self) -> dict[str, Any]:
        """Return the config entries that differ from the class's defaults."""
        return base.settings_of(self.tower.config)


ENCODER = Staged
MODEL_TYPES = tuple(ARCHITECTURES)


def _keep(means: dict[int, Tensor], level: int, _: nn.Module, __: Any, out: Any) -> None:
    """Store the spatial mean of a stage's output: (B, T, dim) of a Swin, (B, dim, H, W) of the others."""
    states = out[0] if isinstance(out, tuple) else out
    means[level] = states.mean(1) if states.dim() == 3 else states.mean((2, 3))


def _width(config: Any) -> int:
    """Return the width of the last stage, the widest."""
    sizes = getattr(config, "hidden_sizes", None)
    return int(max(sizes)) if sizes else int(config.embed_dim * 2 ** (len(config.depths) - 1))


def _published(config: Any) -> dict[str, Any]:
    """Return the published preprocessing: Swins resize to their own size, the others crop 224 of 256 pixels."""
    if config.model_type.startswith("swin"):
        return {"size": config.image_size, "resample": base.BICUBIC, **base.IMAGENET}
    return {"size": {"shortest_edge": 224}, "crop_pct": 224 / 256, "resample": base.BILINEAR, **base.IMAGENET}
