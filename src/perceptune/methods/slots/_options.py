"""Recipe keys shared by methods: what is injected where, and what is trained beside the connections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perceptune.encoders.base import TokenSelection

RATE = 1e-7  # of unfrozen weights: "the only option" without significant degradation (appendix, Tables 1 and 12)
Rates = dict[Literal["lm", "encoder"], float]


def _with_default_rates(value: Any) -> Any:
    """Expand `unfreeze: [lm]` to `unfreeze: {lm: 1e-7}`."""
    names = [value] if isinstance(value, str) else value
    return dict.fromkeys(names, RATE) if isinstance(names, list) else value


# The keys of each kind of mapper.
_POOLED = ("mapper_depth", "mapper_heads", "mapper_norm", "mapper_eps", "mapper_dropout")
MAPPER_KEYS: dict[str, tuple[str, ...]] = {
    "linear": (), "low-rank": ("mapper_rank",), "mlp": ("mapper_width",),
    "qp": ("mapper_width", "mapper_queries", *_POOLED), "blocks": ("mapper_width", *_POOLED),
    "attn-pool": ("mapper_queries",), "grid": ("mapper_grid",),
    "space-to-depth": ("mapper_group", "mapper_rank"), "random-tokens": ("mapper_eps",),
    "group-mean": ("mapper_group", "mapper_width", "mapper_eps"),
    "group-linear": ("mapper_group", "mapper_width", "mapper_eps"),
    "group-qp": ("mapper_group", "mapper_width", *_POOLED),
}  # fmt: skip
OF_SINGLE_TOKENS = ("linear", "low-rank", "mlp", "qp")  # mappers that make sense of [CLS] alone


class InjectionOptions(BaseModel):
    """Recipe keys under `method`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n_levels: int = Field(6, ge=1, description="number of last encoder layers whose [CLS] is used")
    levels: list[int] | None = Field(
        None, min_length=1, description="encoder layers (0-based; -1 = the last) instead of the last `n_levels`"
    )
    tokens: TokenSelection = Field(
        "cls", description="tokens of a level, each in its own slot: `cls`; `cls-mean` = [CLS] and the mean patch; "
        "`grid-G` = [CLS] and G x G means of patches; `all`",
    )  # fmt: skip
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
    mapper: Literal[
        "linear", "low-rank", "mlp", "qp", "blocks", "attn-pool", "grid", "space-to-depth", "random-tokens",
        "group-mean", "group-linear", "group-qp",
    ] = Field(
        "linear", description="what maps a level's tokens to the LM; all but linear, low-rank, mlp and qp need "
        "`tokens: all` (docs/methods.md)",
    )  # fmt: skip
    mapper_width: int | None = Field(
        None, ge=1, description="hidden width of mlp, group-* (None = the LM's), qp and blocks (None = the encoder's, "
        "without a map in front)",
    )  # fmt: skip
    mapper_rank: int | None = Field(None, ge=1, description="rank of low-rank; of space-to-depth, None = a full map")
    mapper_depth: int = Field(2, ge=1, description="transformer blocks of qp, blocks and group-qp")
    mapper_queries: int = Field(32, ge=1, description="tokens that come out of qp and attn-pool")
    mapper_heads: int = Field(8, ge=1, description="attention heads of qp, blocks and group-qp")
    mapper_norm: Literal["post", "pre"] = Field(
        "post", description="place of the layer norms of qp, blocks and group-qp"
    )
    mapper_eps: float = Field(1e-4, gt=0, description="epsilon of the norms of mappers and of `per_layer`")
    mapper_dropout: float = Field(0.1, ge=0, lt=1, description="dropout of qp, blocks and group-qp")
    mapper_grid: int = Field(4, ge=1, description="side of grid's cells: 4 = 4 x 4 means")
    mapper_group: int = Field(2, ge=1, description="side of the groups of patches of space-to-depth and group-*")
    per_layer: Literal["none", "scale-bias", "norm-scale-bias"] = Field(
        "none", description="trained scale and bias of what enters each injected layer; norm = behind an RMS norm"
    )
    standardize: bool = Field(True, description="scale features to mean 0, std 1 per level and dimension")
    feature_noise: float = Field(
        0.0, ge=0, description="Gaussian noise on the features in training, in standard deviations of each dimension"
    )
    media_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that a medium of a training row is left out, with its slots"
    )
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
    tune_norms: Literal["none", "injected", "all"] = Field(
        "none", description="train scales, and biases where the LM has them, of the norms in the LM's layers: injected "
        "= from the first layer that media enter to the last",
    )  # fmt: skip
    tune_biases: Literal["none", "injected", "all"] = Field(
        "none", description="train a scale and a bias of the output of each linear map in these layers"
    )
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
        self._check_mapper()
        if self.inject is not None:
            for name in ("n_levels", "levels", "first", "last", "refresh"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"`inject` names every layer, so it does not go with `{name}`")
        if self.slot_positions == "sequential" and self.slot_mask == "official":
            raise ValueError("`slot_mask: official` is for slots in front of the text: `slot_positions: zero`")
        if self.slot_positions == "sequential" and self.media_dropout:
            raise ValueError("`media_dropout` is for slots in front of the text: `slot_positions: zero`")
        if self.feature_noise and not self.standardize:
            raise ValueError("`feature_noise` needs the features' standard deviations: `standardize: true`")
        for name in ("tune_norms", "tune_biases") if "lm" in self.unfreeze else ():
            if getattr(self, name) != "none":
                raise ValueError(f"`unfreeze` trains all weights of the LM, so it does not go with `{name}`")
        for name, rate in self.unfreeze.items():
            if not rate > 0:
                raise ValueError(f"`unfreeze.{name}` is a learning rate, greater than 0")
        return self

    def _check_mapper(self) -> None:
        heeded = (*MAPPER_KEYS[self.mapper], *(("mapper_eps",) if self.per_layer == "norm-scale-bias" else ()))
        for name, field in type(self).model_fields.items():
            if name.startswith("mapper_") and name not in heeded and getattr(self, name) != field.default:
                takers = [kind for kind, keys in MAPPER_KEYS.items() if name in keys]
                raise ValueError(f"`mapper: {self.mapper}` has no `{name}`, which belongs to {', '.join(takers)}")
        if self.mapper == "low-rank" and self.mapper_rank is None:
            raise ValueError("`mapper: low-rank` needs its rank, `mapper_rank`")
        if self.tokens == "cls" and self.mapper not in OF_SINGLE_TOKENS:
            raise ValueError(f"`mapper: {self.mapper}` works on all tokens of a level: `tokens: all`")
        if self.mapper != "linear" and self.connector_init == "answers":
            raise ValueError("`connector_init: answers` fits linear maps: `mapper: linear`")
        if self.mapper == "random-tokens" and self.slot_positions == "sequential":
            raise ValueError("`mapper: random-tokens` differs in number by step, so its slots cannot stand in the text")
