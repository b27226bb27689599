"""How a request's objects are read: null is as if the key were not there, unknown keys are refused."""

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
        """Clients write null for what they were not told; so do other servers' answers that are sent back."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe that null may stand for whatever may be left out."""
        described = handler(schema)
        found = handler.resolve_ref_schema(described)
        required = found.get("required", ())
        for name, one in found.get("properties", {}).items():
            if name not in required and {"type": "null"} not in one.get("anyOf", ()):
                about = {key: one.pop(key) for key in ("title", "description", "default") if key in one}
                found["properties"][name] = {"anyOf": [one, {"type": "null"}], **about}
        found["additionalProperties"] = {"type": "null"}
        return described


@dataclass(frozen=True, eq=False)  # `typing` takes equal annotations for one, and 0 equals false
class Only:
    """Annotates a key that is accepted with the values that ask for what is done anyway, and refused with others."""

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
    """Equality of JSON: 0 is not false, but 1 is 1.0."""
    return given == allowed and isinstance(given, bool) == isinstance(allowed, bool)


def _shown(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
