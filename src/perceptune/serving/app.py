"""The routes."""

from __future__ import annotations

import html
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from perceptune._version import __version__
from perceptune.serving.chat import Chat
from perceptune.serving.decoding import Decoders
from perceptune.serving.errors import ApiError
from perceptune.serving.examples import Example
from perceptune.serving.front import add_page, page_files
from perceptune.serving.gate import Gate
from perceptune.serving.intake import Intake
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.metrics import Metrics
from perceptune.serving.remote import Remote
from perceptune.serving.runs import Run, Runs
from perceptune.serving.scheduler import Scheduler
from perceptune.serving.schema import ChatRequest

_REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Access:
    """Who may ask, and what a request may name. Nothing but what it brings along, unless said otherwise."""

    key: str | None = None
    hosts: Collection[str] | None = ("localhost", "127.0.0.1", "::1")  # None: any
    local: LocalFiles | None = None
    remote: Remote | None = None
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)  # of each run, to whoever may ask it


def make_app(runs: Runs, limits: Limits, access: Access | None = None, *, decoders: int = 2) -> FastAPI:
    """An ASGI application that answers for these runs; `decoders` processes take media apart."""
    access = access or Access()
    metrics = Metrics()
    scheduler: list[Scheduler] = []  # made where there is an event loop

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        processes = Decoders(limits, decoders, runs.frames)
        intake = Intake(limits, processes, access.local, access.remote, max(1, min(4, os.cpu_count() or 1)))
        own = Scheduler(limits, metrics)
        app.state.chat = Chat(runs, limits, intake, own, metrics)
        own.start()
        scheduler.append(own)
        try:
            yield
        finally:
            scheduler.clear()
            await own.close()
            intake.close()
            processes.close()

    app = FastAPI(title="Perceptune", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.get("/health", summary="Whether requests are answered")
    async def health() -> JSONResponse:
        if scheduler and scheduler[0].alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "not ready"}, 503)

    @app.get("/version", summary="Of this program")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics", summary="Counters, as Prometheus reads them", response_class=PlainTextResponse)
    async def counters() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", summary="The runs that are served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(run) for run in runs.values()]}

    @app.get("/v1/models/{name:path}", summary="One of them")
    async def model(name: str) -> dict[str, Any]:
        return _card(runs.named(name))

    @app.post(
        "/v1/chat/completions", summary="An answer to a question about a medium", response_class=JSONResponse,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {
            "schema": {"$ref": _REFERENCE.format(model="ChatRequest")}}}}},
    )  # fmt: skip
    async def chat(request: Request) -> Response:
        answered: Response = await app.state.chat(request)
        return answered

    @app.get("/docs", summary="This page", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app.openapi()))

    files = page_files()
    add_page(app, files, runs, limits, access.examples)
    _answer_errors(app)
    _describe(app)
    known = {path for path in app.openapi()["paths"] if "{" not in path}
    app.add_middleware(
        Gate, key=access.key, hosts=access.hosts, metrics=metrics, routes=known, open_routes={"/health", *files}
    )
    return app


def _card(run: Run) -> dict[str, Any]:
    return {"id": run.name, "object": "model", "created": run.created, "owned_by": "perceptune"}


def _answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def routing(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail)).response()

    async def unforeseen(_: Request, __: Exception) -> Response:
        return ApiError(500, "something went wrong here").response()

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unforeseen)


def _describe(app: FastAPI) -> None:
    """Adds the request's schema, which is parsed by hand, to what FastAPI says of the routes."""
    described = app.openapi()
    schema = ChatRequest.model_json_schema(ref_template=_REFERENCE)
    parts = schema.pop("$defs", {})
    described.setdefault("components", {}).setdefault("schemas", {}).update({**parts, "ChatRequest": schema})


def _docs(described: dict[str, Any]) -> str:
    """The routes and the request's fields, without any script: Swagger's pages load theirs from elsewhere."""

    def row(what: str, meaning: str) -> str:
        return f"<tr><td><code>{html.escape(what)}</code></td><td>{html.escape(meaning)}</td></tr>"

    rows = [
        row(f"{method.upper()} {path}", one.get("summary", ""))
        for path, methods in described["paths"].items()
        for method, one in methods.items()
    ]
    properties = described["components"]["schemas"]["ChatRequest"]["properties"]
    fields = [row(name, one.get("description", "")) for name, one in properties.items()]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Perceptune {__version__}</title>"
        f"<h1>Perceptune {__version__}</h1><table>{''.join(rows)}</table>"
        f"<h2>Fields of a chat completion</h2><table>{''.join(fields)}</table>"
        "<p>All of it: <a href=/openapi.json>openapi.json</a></p></html>"
    )
