"""LoRA, or any other PEFT configuration, on the LM, with one connection at the input: an outside baseline.

`peft: {peft_type: LORA, r: 8, target_modules: [q_proj, v_proj]}` holds the keys of that PEFT type's configuration.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.slots.base import EncoderShape, InjectionOptions, PeftInjection

VARIANTS: dict[str, dict[str, Any]] = {"lora": {"n_levels": 1, "first": 0, "last": 0, "prompt": "none"}}
COUNTS = {"lora": "C + LoRA"}


class LoRAOptions(InjectionOptions):
    """Options of every injecting method, and of PEFT."""

    peft: dict[str, Any] = Field(
        default_factory=lambda: {"peft_type": "LORA"},
        description="options of a PEFT configuration; `target_modules` in the LM's blocks, None = PEFT's default",
    )


class LoRA(PeftInjection):
    """PEFT layers beside linear maps of the LM's blocks."""

    Options = LoRAOptions

    def __init__(self, options: LoRAOptions, lm: FrozenLM, shapes: Mapping[str, EncoderShape]) -> None:
        super().__init__(options, lm, shapes, "method.peft", options.peft)


METHOD = LoRA
