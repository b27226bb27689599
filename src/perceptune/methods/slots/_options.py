"""Recipe keys shared by methods: what is injected where, and what is trained beside the connections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

RATE = 1e-7  # of unfrozen weights: "the only option" without significant degradation (appendix, Tables 1 and 12)
Rates = dict[Literal["lm", "encoder"], float]


def _with_default_rates(value: Any) -> Any:
    """Expand `unfreeze: [lm]` to `unfreeze: {lm: 1e-7}`."""
    names = [value] if isinstance(value, str) else value
    return dict.fromkeys(names, RATE) if isinstance(names, list) else value


class InjectionOptions(BaseModel):
    """Recipe keys under `method`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n_levels: int = Field(6, ge=1, description="number of last encoder layers whose [CLS] is used")
    levels: list[int] | None = Field(
        None, min_length=1, description="encoder layers (0-based; -1 = the last) instead of the last `n_levels`"
    )
    tokens: Literal["cls", "all"] = Field("cls", description="all = every token of a level, each in its own slot")
    first: int | None = Field(None, ge=0, description="first LM layer of the range; None = L - min(12, L // 2)")
    last: int | None = Field(None, ge=0, description="last LM layer of the range, included; None = the LM's last")
    refresh: Literal["layer", "level"] = Field(
        "layer", description="overwrite the slot at each layer of the range, or only where a new level enters"
    )
    inject: dict[int, int] | None = Field(
        None, min_length=1,
        description="LM layer: encoder layer, instead of `levels`, `first`, `last` and `refresh`",
    )  # fmt: skip
    shared_connector: bool = Field(False, description="one linear connection for all levels")
    connector_std: float | None = Field(
        0.02, gt=0, description="std of its initial weights; None = torch's default initialisation"
    )
    connector_init: Literal["random", "answers"] = Field(
        "random", description="answers = ridge regression from the features to the LM's hidden states of the training "
        "answers, at the layer where each level enters",
    )  # fmt: skip
    standardize: bool = Field(True, description="scale features to mean 0, std 1 per level and dimension")
    prompt: Literal["none", "plain", "mlp"] = Field("mlp", description="soft prompt; mlp = through an MLP")
    prompt_tokens: int = Field(10, ge=1, description="tokens of the soft prompt")
    prompt_std: float = Field(1.0, gt=0, description="standard deviation of the initial prompt")
    prompt_at: Literal["input", "first_injected", "every_layer"] = Field(
        "input", description="LM layer of the prompt; every_layer = deep prompts, with new vectors at each layer"
    )
    order: Literal["slots-prompt", "prompt-slots"] = Field(
        "slots-prompt",
        description="columns from left to right; a prompt before the slots is the same in every row and runs once",
    )
    adapters: bool = Field(False, description="adapters at attention and feed-forward of every LM layer")
    adapter_factor: int = Field(8, ge=1, description="bottleneck width = hidden size / factor")
    adapter_form: Literal["sequential", "parallel"] = Field(
        "sequential",
        description="sequential = applied to a module's output; parallel = applied to its input, added to its output",
    )
    adapter_scaled: bool = Field(False, description="scale each adapter by a trained factor, initially 1")
    adapter_at: tuple[Literal["attention", "mlp"], ...] = Field(("attention", "mlp"), min_length=1)
    slot_positions: Literal["zero", "sequential"] = Field(
        "zero",
        description="zero = slots stand in front of the text, all at position 0; sequential = in the text at the "
        "`<image>` marks, with positions of their own as in LLaVA, for media that enter at layer 0 only",
    )
    slot_mask: Literal["causal", "official"] = Field("causal", description="official = slots attend to the whole text")
    unfreeze: Annotated[Rates, BeforeValidator(_with_default_rates)] = Field(
        default_factory=dict,
        description="base models to train as well, `lm` and `encoder`, with their learning rates (1e-7)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> InjectionOptions:
        if self.connector_init == "answers" and self.shared_connector:
            raise ValueError("`connector_init: answers` gives each level its own connection: no `shared_connector`")
        if self.inject is not None:
            for name in ("n_levels", "levels", "first", "last", "refresh"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"`inject` names every layer, so it does not go with `{name}`")
        if self.slot_positions == "sequential" and self.slot_mask == "official":
            raise ValueError("`slot_mask: official` is for slots in front of the text: `slot_positions: zero`")
        for name, rate in self.unfreeze.items():
            if not rate > 0:
                raise ValueError(f"`unfreeze.{name}` is a learning rate, greater than 0")
        return self
