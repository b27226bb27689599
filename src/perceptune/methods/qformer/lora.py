"""LoRA, or any other PEFT configuration, on the Q-Former's attention.

`peft: {r: 16}` holds the keys of that PEFT type's configuration; the defaults are PETAL's row: rank 64 on queries,
keys and values of all self- and cross-attentions, scale 1 (5.80 million in InstructBLIP).
"""

from typing import Any

from pydantic import Field

from perceptune.methods.qformer.base import FrozenBlip, QFormerMethod, QFormerOptions, Site, config_of, wrapped

RANK = 64
KIND = "LORA"


class LoRAOptions(QFormerOptions):
    """Options of PEFT."""

    peft: dict[str, Any] = Field(
        default_factory=dict,
        description="options of a PEFT configuration for the Q-Former; defaults: `peft_type: LORA`, `r: 64`, "
        "`lora_alpha` = `r`, `target_modules` = queries, keys and values of all its attentions",
    )


class LoRA(QFormerMethod):
    """PEFT layers in place of linear maps of the Q-Former."""

    Options = LoRAOptions

    def __init__(self, options: LoRAOptions, blip: FrozenBlip) -> None:
        super().__init__(options, blip)
        given = {"peft_type": KIND, **options.peft}
        if str(given["peft_type"]).upper() == KIND:
            given = {"r": RANK, **given}
            given.setdefault("lora_alpha", given["r"])
        self.peft, peft_model = wrapped(blip, config_of(given, "method.peft", blip))
        self._kind = str(given["peft_type"]).upper()
        self._places = [name for name, part in blip.qformer.named_modules() if hasattr(part, "base_layer")]
        self.__dict__["peft_model"] = peft_model  # for merging; its weights are owned by `peft` alone

    def sites(self) -> list[Site]:
        return [Site(int(name.split(".")[2]), f"qformer.{name}", f"{self._kind} of PEFT") for name in self._places]


METHOD = LoRA
