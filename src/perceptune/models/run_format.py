"""Conversion of recipes in earlier formats of run folders to the current one."""

from typing import Any

FORMAT_VERSION = 3  # of run folders as written now
_RENAMED = {"speaks": "uses_lm_loss"}  # keys of `method` in format 1
_EARLIER_AUDIO = "dinov2-small"  # what `default` stood for up to format 2


def upgrade_recipe(data: dict[str, Any], version: int) -> dict[str, Any]:
    """Return the keys of a run's recipe of format `version` in the current format."""
    if isinstance(data.get("method"), dict):
        data = {**data, "method": {_RENAMED.get(key, key): value for key, value in data["method"].items()}}
    encoders = data.get("encoders")
    if version < 3 and isinstance(encoders, dict) and "audio" in encoders:
        data = {**data, "encoders": {**encoders, "audio": _named_audio(encoders["audio"])}}
    return data


def _named_audio(encoder: Any) -> Any:
    """Return the section of an audio encoder that does not say `default`."""
    if isinstance(encoder, dict) and encoder.get("id", "default") == "default":
        return {**encoder, "id": _EARLIER_AUDIO}
    return _EARLIER_AUDIO if encoder == "default" else encoder
