"""Executes the steps of launch/Dockerfile where there is no docker, in a folder of its own, and asks the server.

    python tests/container.py RUN       RUN is a run folder; takes the time of an installation

COPY, ENV, RUN, ENTRYPOINT and CMD are executed as they are written, with a virtual environment in place of the image's
Python and the paths below the folder. `RUN useradd ...` concerns the image alone and is left out.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "launch/Dockerfile"
KEY = "a-key-of-the-container"


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction with its arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    run = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as made:
        folder, place = Path(made), Path(made)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        env = {**os.environ, "PATH": f"{folder}/venv/bin:{os.environ['PATH']}", "PERCEPTUNE_API_KEY": KEY}
        env.pop("PYTHONPATH", None)
        words: list[str] = []
        for name, rest in instructions(FILE.read_text(encoding="utf-8")):
            if name == "WORKDIR":
                place = folder / rest.strip("/")
                place.mkdir(parents=True)
            elif name == "COPY":
                _copy(shlex.split(rest), place)
            elif name == "ENV":
                key, _, value = rest.partition("=")
                env[key] = str(folder / value.strip("/"))
            elif name == "RUN" and not rest.startswith("useradd"):
                print(f"$ {rest}", flush=True)
                subprocess.run(["bash", "-c", rest], cwd=place, env=env, check=True)
            elif name in ("ENTRYPOINT", "CMD"):
                words += json.loads(rest)
        return _serve([str(run) if word == "/run" else word.replace("=/run", f"={run}") for word in words], place, env)


def _copy(words: list[str], place: Path) -> None:
    *sources, target = words
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place / target)


def _serve(words: list[str], place: Path, env: dict[str, str]) -> int:
    """Start what the container starts, ask it, end it as docker does; return 0 if all went well."""
    print(f"$ {shlex.join(words)}", flush=True)
    started = subprocess.Popen(words, cwd=place, env=env)
    end = time.monotonic() + 300
    try:
        while not _answers("/health"):
            if started.poll() is not None or time.monotonic() > end:
                return 1
            time.sleep(1)
        print(f"models: {_answers('/v1/models')}", flush=True)
        started.send_signal(signal.SIGTERM)
        return started.wait(60)
    finally:
        started.kill()


def _answers(path: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:8000{path}", headers={"Authorization": f"Bearer {KEY}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
