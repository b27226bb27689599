"""The key `train.objective`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from perceptune.config.section import ConfigSection


class RewardConfig(ConfigSection):
    """A reward stage (self-critical training): of several sampled answers, those better than the others get likelier.

    Answers are sampled at temperature 1 with at most `decode.max_new_tokens` tokens.
    """

    kind: Literal["reward"] = Field("reward", description="a reward stage")
    samples: int = Field(5, ge=2, le=256, description="answers sampled of each training sample at each step")
    baseline: Literal["mean-of-others"] = Field(
        "mean-of-others", description="what is subtracted from an answer's reward: the mean of the other samples'"
    )
    reward: Literal["CIDEr-D"] = Field(
        "CIDEr-D", description="against all references of the medium, with document frequencies of the training set"
    )
    ce: float = Field(0.1, ge=0, description="weight of the cross-entropy that is added")
