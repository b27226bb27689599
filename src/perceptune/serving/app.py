"""Routes of the server."""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from perceptune._version import __version__
from perceptune.serving.auth_middleware import AuthMiddleware
from perceptune.serving.chat import read_response
from perceptune.serving.drain import Drain
from perceptune.serving.errors import ApiError
from perceptune.serving.examples import Showing
from perceptune.serving.limits import Limits
from perceptune.serving.local import LocalFiles
from perceptune.serving.metrics import Metrics
from perceptune.serving.openapi import REFERENCE, complete_openapi
from perceptune.serving.origins import Origins
from perceptune.serving.remote import Remote
from perceptune.serving.runs import Runs, ServedRun
from perceptune.serving.service import Ended, Service
from perceptune.serving.web_page import add_page, page_files
from perceptune.utils.templates import render


@dataclass(frozen=True)
class Access:
    """Clients and hosts that may send requests, and media that a request may name. By default only inline media."""

    key: str | None = None
    hosts: Collection[str] | None = ("localhost", "127.0.0.1", "::1")  # None: any
    local: LocalFiles | None = None
    remote: Remote | None = None
    origins: Collection[str] = ()  # other servers' origins whose pages may send requests
    examples: Showing = lambda _: {}  # rows of each run's data, for every client with access


def make_app(
    runs: Runs | Callable[[], Runs], limits: Limits, access: Access | None = None, *, decoders: int = 2,
    ended: Ended = lambda _: None, drain: Drain | None = None, access_log: bool = False,
) -> FastAPI:  # fmt: skip
    """Build the ASGI application for these runs, with `decoders` media decoding processes.

    Runs given as a function are loaded once the application is running; `ended` is called when that is done. `drain`
    is that of its server; with `access_log` each request is a line of JSON on standard error.
    """
    access, drain = access or Access(), drain or Drain()
    metrics = Metrics()
    service = Service(limits, access.local, access.remote, access.examples, decoders=decoders, metrics=metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if isinstance(runs, Runs):
            service.open(runs)
        else:
            service.load(runs, ended)
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(title="Perceptune", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.get("/health", summary="Whether requests are answered: 503 while models are loaded, or the server ends")
    async def health() -> JSONResponse:
        status = "shutting down" if drain.has_begun else service.status
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/version", summary="Of this program")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics", summary="Counters, as Prometheus reads them", response_class=PlainTextResponse)
    async def counters() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", summary="The runs that are served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(run) for run in service.runs.values()]}

    @app.get("/v1/models/{name:path}", summary="One of them")
    async def model(name: str) -> dict[str, Any]:
        return _card(service.runs.named(name))

    @app.post(
        "/v1/chat/completions", summary="An answer to a question about a medium", response_class=JSONResponse,
        openapi_extra=_body_of("ChatRequest"),
    )  # fmt: skip
    async def chat(request: Request) -> Response:
        return await service.chat(request)

    @app.post(
        "/v1/responses", summary="The same in the form of OpenAI's Responses API", response_class=JSONResponse,
        openapi_extra=_body_of("ResponseRequest"),
    )  # fmt: skip
    async def responses(request: Request) -> Response:
        return await service.chat(request, read_response)

    @app.get("/docs", summary="This page", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app.openapi()))

    files = page_files()
    add_page(app, files, service, limits)
    _answer_errors(app)
    complete_openapi(app)
    known = {path for path in app.openapi()["paths"] if "{" not in path}
    app.add_middleware(
        AuthMiddleware, key=access.key, hosts=access.hosts, metrics=metrics, routes=known,
        open_routes={"/health", *files}, origins=Origins(access.origins), drain=drain, access_log=access_log,
    )  # fmt: skip
    return app


def _body_of(model: str) -> dict[str, Any]:
    """Return the OpenAPI description of a route's body, which is parsed by hand."""
    described = {"application/json": {"schema": {"$ref": REFERENCE.format(model=model)}}}
    return {"requestBody": {"required": True, "content": described}}


def _card(run: ServedRun) -> dict[str, Any]:
    return {"id": run.name, "object": "model", "created": run.created, "owned_by": "perceptune"}


def _answer_errors(app: FastAPI) -> None:
    """Return every error in OpenAI's format."""

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if "Allow" in headers:
            methods = headers["Allow"].split(", ")
            headers["Allow"] = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        answer = ApiError(error.status_code, str(error.detail)).response()
        answer.headers.update(headers)
        return answer

    async def unforeseen(_: Request, __: Exception) -> Response:
        return ApiError(500, "something went wrong here").response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unforeseen)


def _docs(described: dict[str, Any]) -> str:
    """Return a page of the routes and request fields, without scripts: Swagger's pages load theirs from elsewhere."""
    return render(Path(__file__).with_name("routes.html"), version=__version__, described=described)
