"""eP-ALM's injection with PETAL's dynamic mode approximation on the LM, and on the encoder if asked for.

Late injection as in eP-ALM (section 3.2); in place of its soft prompt the LM's linear maps get the low-rank deltas of
PETAL (arXiv 2312.12458), whose factors all maps of one shape share.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.slots.base import EncoderShape, InjectionOptions, PeftInjection, PeftLayers, linear_maps

VARIANTS: dict[str, dict[str, Any]] = {"epalm-dma": {"prompt": "none"}}
COUNTS = {"epalm-dma": "n*C + DMA"}
TYPE = {"peft_type": "DMA"}


class DMAOptions(InjectionOptions):
    """Options of every injecting method, and of DMA."""

    dma: dict[str, Any] = Field(
        default_factory=dict,
        description="options of `DMAConfig` for the LM's blocks; `target_modules` None = PEFT's default for LoRA",
    )
    encoder_dma: dict[str, Any] | None = Field(
        None, description="the same for each encoder, `target_modules` `all-linear` by default; features change "
        "with every step, so they are not cached",
    )  # fmt: skip


class DMA(PeftInjection):
    """Deltas beside linear maps of the LM's blocks and, with `encoder_dma`, of the encoders."""

    Options = DMAOptions

    def __init__(self, options: DMAOptions, lm: FrozenLM, shapes: Mapping[str, EncoderShape]) -> None:
        super().__init__(options, lm, shapes, "method.dma", {**TYPE, **options.dma})
        self._encoder_dma = options.encoder_dma
        self.encoder_peft = nn.ModuleDict()

    def unfreeze(self, lm: FrozenLM, encoders: Mapping[str, nn.Module]) -> None:
        if self._encoder_dma is not None:
            given = {**TYPE, "target_modules": "all-linear", **self._encoder_dma}
            for modality, encoder in encoders.items():
                layers = PeftLayers(encoder, given, "method.encoder_dma", linear_maps(encoder))
                layers.attach()
                self.encoder_peft[modality] = layers
        super().unfreeze(lm, encoders)

    @property
    def trains_encoders(self) -> bool:
        return super().trains_encoders or self._encoder_dma is not None


METHOD = DMA
