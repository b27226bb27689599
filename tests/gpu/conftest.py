"""One process with the pretend GPU for all tests here; without a compiler they are skipped."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import blips
import guarded
import support
from perceptune.utils.downloads import cache_dir

GUARD = Path(__file__).with_name("guard.cpp")
CACHE = cache_dir() / "tests"  # the user's: compiling takes ten seconds

Rehearse = Callable[..., Any]


def compile_guard() -> Path:
    """The compiled `guard.cpp`, once for each version of it and of torch."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: the pretend GPU cannot be made")
    root = Path(torch.__file__).parent
    digest = hashlib.sha256(f"{torch.__version__} {torch.version.git_version}".encode() + GUARD.read_bytes())
    library = CACHE / f"guard-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = library.with_suffix(f".{os.getpid()}")
        folders = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
        linked = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-std=c++20", *folders, str(GUARD), "-o", str(draft), *linked],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"the pretend GPU does not compile here: {done.stderr[-500:]}")
        draft.replace(library)
    return library


@pytest.fixture(scope="session")
def rehearse() -> Iterator[Rehearse]:
    """Calls a function of `rehearsals` where the pretend GPU is, and returns what it does."""
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA of its own: `perceptune doctor --gpu` tries it")
    library = compile_guard()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, guarded.start, (str(library),)) as process:
        yield lambda function, *given, **more: process.submit(function, *given, **more).result()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models by their names, `vit` and `data`."""
    root = tmp_path_factory.mktemp("tiny")
    for family in ("llama", "opt", "gpt2", "gemma3", "bloom"):
        support.save_lm(root / family, family)
    support.save_encoder(root / "vit", "vit")
    blips.save_all(root / "blips", ("t5", "llama", "blip2-opt"))
    support.save_data(root / "data", rows=6)
    return root
