"""Files of the web page and its run descriptions; everything else it requests from the routes of all clients."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from perceptune.models.pretrained import DEFAULT_ENCODERS, DEFAULT_LM
from perceptune.serving.limits import MIB, Limits
from perceptune.serving.runs import ServedRun
from perceptune.serving.service import Service

FOLDER = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip


class File(NamedTuple):
    """A file of the page, in memory: no request ever names a path."""

    data: bytes
    kind: str


def page_files() -> dict[str, File]:
    """Return the files by route. They contain no secret and nothing of any run, so they need no key."""
    files = {f"/{path.name}": File(path.read_bytes(), _KINDS[path.suffix]) for path in sorted(FOLDER.iterdir())}
    return {"/": files.pop("/index.html"), **files}


def add_page(app: FastAPI, files: Mapping[str, File], service: Service, limits: Limits) -> None:
    """Add the routes of the page and those that only it uses."""
    for route, file in files.items():
        app.add_api_route(route, _sender(file), methods=["GET"], include_in_schema=False)
    told: dict[str, dict[str, Any]] = {}

    @app.get("/v1/runs/{name:path}", summary="What a run is made of: its models, and which layer is given what")
    async def run(name: str) -> dict[str, Any]:
        found = service.runs.named(name)
        if found.name not in told:
            told[found.name] = describe_for_page(found, limits, len(service.examples.get(found.name, ())))
        return told[found.name]

    @app.get("/v1/examples/{name:path}", summary="Rows of a run's data set with media and reference (--examples)")
    async def rows(name: str) -> JSONResponse:
        found = service.examples.get(service.runs.named(name).name, ())
        return JSONResponse({"object": "list", "data": [one.row(place) for place, one in enumerate(found)]})


def _sender(file: File) -> Any:
    async def send() -> Response:
        return Response(file.data, media_type=file.kind)

    return send


def describe_for_page(run: ServedRun, limits: Limits, examples: int) -> dict[str, Any]:
    """Describe a run. Names are reduced to their last part, as paths of this machine are not public."""
    model = run.model
    trained, total = model.count_parameters()
    decoding = run.model.decoding
    encoders = model.recipe.encoders
    return {
        "id": run.name, "method": model.recipe.method.name, "lm": shown(model.recipe.lm.id, DEFAULT_LM),
        "encoders": {kind: shown(part.id, DEFAULT_ENCODERS.get(kind, "")) for kind, part in encoders.items()},
        "trained": trained, "share": trained / total,
        "takes": list(model.stores), "asks": run.takes_history or "{prompt}" in model.recipe.text.template,
        "max_media": run.max_media, "takes_history": run.takes_history,
        "decoding": {"max_new_tokens": decoding.max_new_tokens, "beams": decoding.beams,
                     "temperature": decoding.temperature if decoding.sample else 0},
        "limits": {"tokens": limits.tokens, "body": int(limits.body_mb * MIB), "audio_seconds": limits.audio_seconds,
                   "video_seconds": limits.video_seconds,
                   "bytes": {name: limits.bytes_of(name) for name in ("image", "audio", "video")}},
        **model.layer_info(), "inputs": model.method.describe_inputs(), "examples": examples,
    }  # fmt: skip


def shown(name: str, default: str) -> str:
    """Return the last part of an identifier or a path; the model's name for `default`."""
    return default if name == "default" else name.replace("\\", "/").rstrip("/").rpartition("/")[2]
