"""The key `train.hold_out`: a number of samples, or media by group for two splits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from perceptune.config.section import ConfigSection, require_amount

HELD_OUT, VALIDATION, TEST = "held-out", "validation", "test"  # the splits that the key may add


class HoldOutConfig(ConfigSection):
    """Whole media held out of the first split: split `validation` selects the checkpoint, split `test` reports."""

    media: int | float = Field(0.1, description="number or fraction of media held out")
    selecting: float = Field(
        0.5, ge=0, le=1, description="fraction of them that becomes split `validation`; the rest becomes split `test`"
    )
    group_by: str | None = Field(
        None, description="column of the rows, or regular expression on the media's file names (its first group, else "
        "the whole match), by which media belong together; None = each medium alone",
    )  # fmt: skip
    seed: int = Field(4321, description="seed of the choice; it does not depend on the training's `seed`")

    _amount = field_validator("media")(require_amount)


def held_out_splits(hold_out: Any) -> tuple[str, ...]:
    """Return the splits that `train.hold_out`, read or as written in a recipe, adds to those of the task."""
    if hold_out is None:
        return ()
    if not isinstance(hold_out, HoldOutConfig | dict):
        return (HELD_OUT,)
    share = hold_out.get("selecting", 0.5) if isinstance(hold_out, dict) else hold_out.selecting
    return (VALIDATION,) * (share != 0) + (TEST,) * (share != 1)


def _number_or_mapping(value: Any) -> Any:
    if value is not None and not isinstance(value, int | float | dict | HoldOutConfig):
        raise ValueError("must be a number or a fraction of samples, or a mapping with `media`")
    return value


HoldOut = Annotated[HoldOutConfig | int | float, BeforeValidator(_number_or_mapping)]
