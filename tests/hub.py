"""A stand-in for a Hugging Face hub: as much of its HTTP interface as pushing and fetching need, without xet."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Hub:
    """Its repositories: name -> commits, each a mapping of file names to bytes."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.large: dict[str, bytes] = {}  # sha256 -> content, sent beside the commit
        self.private: dict[str, bool] = {}
        self.refuses = False
        self.address = ""
        self.stop: Callable[[], None] = lambda: None  # nobody answers any more

    def create(self, body: dict[str, Any]) -> str:
        name = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
        self.commits.setdefault(name, [])
        self.private[name] = bool(body.get("private")) or body.get("visibility") == "private"
        return name

    def commit(self, name: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.commits[name][-1][1]) if self.commits[name] else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        sha = hashlib.sha1(repr((len(self.commits[name]), sorted(files.items()))).encode()).hexdigest()
        self.commits[name].append((sha, files))
        return sha

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = self.commits.get(name) or []
        return next((one for one in reversed(found) if revision in ("main", one[0])), None)


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        data, path, hub = self.body(), self.path.partition("?")[0], self.server.hub
        if hub.refuses:
            self.say(403, {"error": "You are not allowed to do this"})
        elif path == "/api/repos/create":
            name = hub.create(json.loads(data))
            self.say(200, {"url": f"{hub.address}/{name}", "id": name})
        elif "/preupload/" in path:
            self.say(200, {"files": [_upload_mode(one["path"]) for one in json.loads(data)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            places = [{**one, "actions": {"upload": {"href": f"{hub.address}/large/{one['oid']}"}}}
                      for one in json.loads(data)["objects"]]  # fmt: skip
            self.say(200, {"transfer": "basic", "objects": places})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            sha = hub.commit(name, [json.loads(line) for line in data.splitlines()])
            self.say(200, {"commitUrl": f"{hub.address}/{name}/commit/{sha}", "commitOid": sha})
        else:
            self.say(200, {"errors": [], "warnings": []})  # validate-yaml

    def do_PUT(self) -> None:
        self.server.hub.large[self.path.rpartition("/")[2]] = self.body()
        self.say(200, {})

    def do_GET(self) -> None:
        path, hub = self.path.partition("?")[0], self.server.hub
        if path.startswith("/api/models/"):
            name, what, revision = [*re.split("/(revision|tree)/", path.removeprefix("/api/models/")), "", "main"][:3]
            found = hub.at(name, revision)
            if found is None:
                self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            else:
                tree = [{"type": "file", "path": f, "size": len(data), "oid": found[0]} for f, data in found[1].items()]
                about = {"id": name, "sha": found[0], "siblings": [{"rfilename": f} for f in found[1]]}
                self.say(200, tree if what == "tree" else about)
            return
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = hub.at(name, revision)
        if found is None or file not in found[1]:
            self.say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        data = found[1][file]
        self.say(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": found[0]})

    def do_HEAD(self) -> None:
        self.do_GET()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def say(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """A test's output is the test's."""


def _upload_mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@contextmanager
def serving(cache: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, to which `huggingface_hub` is led; what it fetches goes into `cache`."""
    from huggingface_hub import constants

    hub = Hub()
    server = _Server(hub)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "made-up")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    hub.stop = stop
    try:
        yield hub
    finally:
        if thread.is_alive():
            stop()
