"""Request keys that are accepted beside the supported ones: `accepted.yaml`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model

from perceptune.config.recipe import read_yaml
from perceptune.serving.fields import Fields, Only

_TYPES: dict[str, Any] = {"boolean": bool, "integer": int, "string": str, "object": dict[str, Any]}
_NOTES = {
    "parallel_tool_calls": "of no effect: there are no tools", "user": "of no effect, as are those that follow"
}  # fmt: skip


def _field(key: str, taken: Any) -> Any:
    kind = _TYPES[taken] | None if isinstance(taken, str) else Annotated[Any, Only(tuple(taken))]
    return kind, Field(None, description=_NOTES.get(key))


if TYPE_CHECKING:  # no code reads these keys
    Accepted = Fields
else:
    _KEYS = read_yaml(Path(__file__).with_suffix(".yaml"))
    Accepted = create_model(
        "Accepted", __base__=Fields, __module__=__name__,
        **{key: _field(key, taken) for key, taken in _KEYS.items()},
    )  # fmt: skip
