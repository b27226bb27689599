"""The sections of a recipe that only one command reads: `build-instructblip` and `compare`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from perceptune.config.hold_out import HoldOut
from perceptune.config.section import ConfigSection, require_amount


class BuildConfig(ConfigSection):
    """The small InstructBLIP that `perceptune build-instructblip` creates: its parts and the shape of its Q-Former."""

    lm: str = Field("default", description="`default`, a Hugging Face id or a local folder")
    encoder: str = Field("default", description="a DINOv2: `default`, a Hugging Face id or a local folder")
    image_size: int = Field(224, ge=14, description="side of the images in pixels, a multiple of the patch size")
    qformer: str | None = Field(
        None, description="a BERT that gives the Q-Former its start, shape and tokenizer: `minilm`, a Hugging Face id "
        "or a local folder; None = random weights and a tokenizer of the data's words",
    )  # fmt: skip
    layers: int = Field(6, ge=1, description="layers of the Q-Former")
    hidden: int = Field(384, ge=8, description="width of the Q-Former")
    heads: int = Field(6, ge=1, description="attention heads of the Q-Former")
    queries: int = Field(16, ge=1, description="number of queries, the image tokens of the LM")
    cross_every: int = Field(2, ge=1, description="cross-attention every n-th layer")
    vocabulary: int = Field(4000, ge=16, description="maximum vocabulary of the Q-Former's tokenizer")
    seed: int = Field(0, description="seed of the new weights")

    @model_validator(mode="after")
    def _divides(self) -> BuildConfig:
        if self.qformer is None and self.hidden % self.heads:
            raise ValueError(f"`hidden` {self.hidden} is not a multiple of `heads` {self.heads}")
        return self


class CompareConfig(ConfigSection):
    """The factors that `perceptune compare` varies; its options of the same names take precedence."""

    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="label → overrides: method options, or dotted recipe keys; `name` defaults to the label",
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="seeds of each method's runs; the first one selects the setting"
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="recipe key → values to try; keys joined by `+` change together"
    )
    select_samples: int | None = Field(500, ge=1, description="validation samples used to select a setting; None = all")
    hold_out: HoldOut = Field(0.1, description="`train.hold_out`, used if there is no validation split")

    _amounts = field_validator("hold_out")(require_amount)
