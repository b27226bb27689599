"""Completion of FastAPI's `/openapi.json`: the request, which is parsed by hand, errors, the key."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI

from perceptune.config.recipe import read_yaml
from perceptune.serving.auth_middleware import ANSWERING
from perceptune.serving.responses_schema import ResponseRequest
from perceptune.serving.schema import ChatRequest

REFERENCE = "#/components/schemas/{model}"
_PARTS = read_yaml(Path(__file__).with_suffix(".yaml"))
_EVERYWHERE = (400, 401, 415, 421)  # statuses of the checks before every route


def complete_openapi(app: FastAPI) -> None:
    """Complete the application's OpenAPI description."""
    described = app.openapi()
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for request in (ChatRequest, ResponseRequest):
        schema = request.model_json_schema(ref_template=REFERENCE)
        schemas.update({**schema.pop("$defs", {}), request.__name__: schema})
    schemas["Error"] = _PARTS["error"]
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
    statuses |= {*_PARTS["meanings"]} if path in ANSWERING else set()
    for status in sorted(statuses):
        answers.setdefault(str(status), {
            "description": _PARTS["meanings"][status],
            "content": {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}},
        })  # fmt: skip
    if path in ANSWERING:
        answers["200"]["content"]["text/event-stream"] = {"schema": {}}
