"""Completion of FastAPI's `/openapi.json`: the request, which is parsed by hand, errors, the key."""

from typing import Any

from fastapi import FastAPI

from perceptune.serving.errors import TYPES
from perceptune.serving.schema import ChatRequest

REFERENCE = "#/components/schemas/{model}"
_MEANINGS = {
    400: "it cannot be done as asked", 401: "wrong or missing key", 404: "no such model", 408: "it came too slowly",
    413: "too large", 415: "not JSON", 421: "not a name of this server", 429: "no place: try again",
    500: "an error of the server", 503: "models are being loaded, or it took too long",
}  # fmt: skip
_EVERYWHERE = (400, 401, 415, 421)  # statuses of the checks before every route
_ERROR = {
    "type": "object", "required": ["error"],
    "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"}, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
            "type": {"enum": [*TYPES.values(), "invalid_request_error", "server_error"]},
        },
    }},
}  # fmt: skip


def complete_openapi(app: FastAPI) -> None:
    """Complete the application's OpenAPI description."""
    described = app.openapi()
    schema = ChatRequest.model_json_schema(ref_template=REFERENCE)
    parts = schema.pop("$defs", {})
    components = described.setdefault("components", {})
    components.setdefault("schemas", {}).update({**parts, "ChatRequest": schema, "Error": _ERROR})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in described["paths"].items():
        for operation in methods.values():
            _describe(path, operation)
        if "get" in methods:
            methods["head"] = _without_bodies(methods["get"])


def _without_bodies(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the description of HEAD for a route with GET."""
    answers = {status: {"description": one["description"]} for status, one in operation["responses"].items()}
    kept: dict[str, Any] = {key: operation[key] for key in ("summary", "parameters", "security") if key in operation}
    return {**kept, "responses": answers}


def _describe(path: str, operation: dict[str, Any]) -> None:
    answers = operation.setdefault("responses", {})
    answers.pop("422", None)  # FastAPI's own errors are returned in OpenAI's format
    if path == "/health":
        answers["503"] = {**answers["200"], "description": "not yet: models are being loaded"}
    else:
        operation["security"] = [{"key": []}]
    statuses = {*_EVERYWHERE, *((404, 503) if path.startswith("/v1/") else ())}
    statuses |= {*_MEANINGS} if path == "/v1/chat/completions" else set()
    for status in sorted(statuses):
        answers.setdefault(str(status), {
            "description": _MEANINGS[status],
            "content": {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}},
        })  # fmt: skip
    if path == "/v1/chat/completions":
        answers["200"]["content"]["text/event-stream"] = {"schema": {}}
