"""The base of a recipe's sections."""

from typing import Any

from pydantic import BaseModel, ConfigDict


def require_amount(value: Any) -> Any:
    """Check a number or a fraction of samples, if one is given. Raises `ValueError` for another number."""
    if isinstance(value, int | float) and (value <= 0 or (isinstance(value, float) and value >= 1)):
        raise ValueError("must be a whole number of at least 1, or a fraction between 0 and 1")
    return value


class ConfigSection(BaseModel):
    """A section of a recipe: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True)
