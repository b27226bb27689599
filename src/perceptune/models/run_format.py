"""Conversion of recipes in earlier formats of run folders to the current one."""

from typing import Any

FORMAT_VERSION = 2  # of run folders as written now
_RENAMED = {"speaks": "uses_lm_loss"}  # keys of `method` in format 1


def upgrade_recipe(data: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a run's recipe in the current format, whatever format they are in."""
    if isinstance(data.get("method"), dict):
        return {**data, "method": {_RENAMED.get(key, key): value for key, value in data["method"].items()}}
    return data
