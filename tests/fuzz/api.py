"""Schemathesis against a served dwarf: whatever is sent, no 5xx, and answers are as `/openapi.json` describes them.

    python tests/fuzz/api.py --seconds 600 --seed 0

Everything stays on this machine. Beside it, good requests go on all the time: each must be answered as before. Exits
with 1 for what Schemathesis finds, a good request that is not answered, memory, descriptors or processes that grow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import perceptune
import support
from perceptune.models.run_folder import save_run
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from servers import KEY, Served, asked, data_url, load_runs, png, served

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,ignored_auth,unsupported_method"
)
GROWN = 1.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(_runs(Path(folder)), Limits(tokens=24)) as server:
        good = server.chat()[1]["choices"]
        held = [_held()]
        wrong: list[str] = []
        over = threading.Event()
        asking = threading.Thread(target=_ask, args=(server, good, wrong, over))
        asking.start()
        found = 0
        for part in range(4):
            found |= _schemathesis(server, options.seconds // 4, options.seed + part, Path(folder))
            held.append(_held())
        over.set()
        asking.join()
        assert server.settles("requests_admitted", 0)
        assert server.settles("buffered_bytes", 0)
    print(f"MB, descriptors and threads at the start and after each quarter: {held}")
    print("\n".join(wrong[:5]) or "good requests were answered all along")
    early, last = held[1], held[-1]
    grown = last[0] > GROWN * early[0] or last[1] > early[1] + 5 or last[2] > early[2] + 5
    return int(bool(found or wrong or grown))


def _runs(folder: Path) -> Runs:
    support.save_lm(folder / "lm", "llama")
    support.save_encoder(folder / "encoder", "dinov2")
    encoders = {name: {"id": str(folder / "encoder")} for name in ("image", "audio", "video")}
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    recipe = support.recipe(folder / "lm", folder / "encoder", encoders=encoders, method=method)
    save_run(folder / "one", perceptune.build(recipe))
    return load_runs([str(folder / "one")], Limits())


def _described(server: Served) -> dict[str, Any]:
    """What the server says of itself, and what by chance is never found: a model's name, an address of a medium."""
    described = server.request("GET", "/openapi.json")[1]
    schemas = described["components"]["schemas"]
    schemas["ChatRequest"]["properties"]["model"] = {"enum": ["one"]}
    known = {"enum": [data_url(png()), data_url(png()[:60])]}
    schemas["Url"]["properties"]["url"] = {"anyOf": [known, {"type": "string"}]}
    schemas["ChatRequest"]["example"] = asked()
    return described


def _schemathesis(server: Served, seconds: int, seed: int, folder: Path) -> int:
    (folder / "openapi.json").write_text(json.dumps(_described(server)), encoding="utf-8")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(folder / "openapi.json"), "--url", server.base,
        "--checks", CHECKS,
        "--phases", "examples,coverage,fuzzing", "--max-time", str(max(1, seconds)), "--seed", str(seed),
        "--header", f"Authorization:Bearer {KEY}", "--suppress-health-check", "all", "--continue-on-failure",
        "--request-timeout", "30", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, check=False, cwd=folder).returncode


def _ask(server: Served, good: object, wrong: list[str], over: threading.Event) -> None:
    while not over.wait(0.2):
        status, answer = server.chat()
        if status != 429 and answer.get("choices") != good:
            wrong.append(f"{status}: {answer}")


def _held() -> tuple[float, int, int]:
    """Memory in MB, descriptors, threads."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return round(pages * 4096 / 1e6), *(len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task"))


if __name__ == "__main__":
    sys.exit(main())
