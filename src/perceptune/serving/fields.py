"""Parsing of a request's objects: null equals an absent key, unknown keys are rejected."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Fields(BaseModel):
    """An object of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        """Drop null values: clients send null for unset keys, and so do other servers' answers that are sent back."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add null to the schema of every optional key."""
        described = handler(schema)
        found = handler.resolve_ref_schema(described)
        required = found.get("required", ())
        for name, one in found.get("properties", {}).items():
            if name not in required and {"type": "null"} not in one.get("anyOf", ()):
                about = {key: one.pop(key) for key in ("title", "description", "default") if key in one}
                found["properties"][name] = {"anyOf": [one, {"type": "null"}], **about}
        found["additionalProperties"] = {"type": "null"}
        return described


@dataclass(frozen=True, eq=False)  # `typing` merges equal annotations, and 0 equals false
class Only:
    """Annotates a key that is accepted with values that are the default behaviour anyway, and rejected with others."""

    values: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [*self.values]}

    def _check(self, given: Any) -> Any:
        if not any(_same(given, one) for one in self.values):
            allowed = " or ".join(json.dumps(one) for one in self.values)
            raise PydanticCustomError(
                "would_change", "{given} is not possible here; allowed is {allowed}, or leave it out",
                {"given": _shown(given), "allowed": allowed},
            )  # fmt: skip
        return given


def _same(given: Any, allowed: Any) -> bool:
    """Return whether JSON values are equal: 0 is not false, but 1 is 1.0."""
    return given == allowed and isinstance(given, bool) == isinstance(allowed, bool)


def _shown(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
