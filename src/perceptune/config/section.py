"""The base of a recipe's sections."""

from typing import Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

# `auto` = bfloat16 if matrix products of the LM are measured to be faster in it than in float32; see `precision.py`.
DType = Literal["auto", "float32", "bfloat16"]
# YAML reads a bare `off` as false.
Off = BeforeValidator(lambda value: "off" if value is False else value)


def require_amount(value: Any) -> Any:
    """Check a number or a fraction of samples, if one is given. Raises `ValueError` for another number."""
    if isinstance(value, int | float) and (value <= 0 or (isinstance(value, float) and value >= 1)):
        raise ValueError("must be a whole number of at least 1, or a fraction between 0 and 1")
    return value


class ConfigSection(BaseModel):
    """A section of a recipe: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True)
