"""The key `decode.consensus`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from perceptune.config.section import ConfigSection


class ConsensusConfig(ConfigSection):
    """Consensus decoding: the answer is the candidate with the highest mean CIDEr-D to the other candidates."""

    samples: int = Field(24, ge=1, le=1024, description="sampled candidates; equal ones count once")
    temperature: float = Field(0.7, gt=0, description="their sampling temperature, instead of `decode.temperature`")
    beams: int = Field(
        3, ge=1, le=32, description="candidates found by a beam search of this width, instead of `decode.beams`"
    )
    weights: Literal["uniform", "probability"] = Field(
        "uniform", description="weights of the candidates as references: equal, or the model's probability of each"
    )
    neighbours: int = Field(
        0, ge=0, le=1000, description="training media most like the sample's, whose captions are references as well; "
        "a run trained with them stores its training captions"
    )  # fmt: skip
    regression: float = Field(
        0, ge=0, description="weight of the CIDEr-D with the medium's captions that a ridge regression on all training "
        "media predicts (0: without); the likeness to the other candidates has weight 1. Needs captions as `neighbours`"
    )  # fmt: skip
    ridge: float = Field(0.3, gt=0, description="ridge penalty of `regression`; vectors of media have length 1")
