"""The notebook docs/tour.ipynb: `python tests/docs/tour.py` executes it on the real models and stores its outputs."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/tour.ipynb"
SOURCES = "executed_sources"  # in the notebook's metadata: what its outputs come from


def read(path: Path = NOTEBOOK) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: Any) -> str:
    """Of all code, as it stands in the notebook."""
    return hashlib.sha256("\0".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def words(cell: Any) -> str:
    """Everything a cell has printed or shown as text."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


def execute(notebook: Any, folder: Path, *, seconds: int) -> None:
    """Runs all cells in `folder`; their outputs are in `notebook` then. Raises `CellExecutionError`."""
    # `!perceptune` is the one of this Python, and the user's own settings of IPython stay out of it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    source = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PATH": path, "PYTHONPATH": source, "IPYTHONDIR": str(folder / ".ipython"),
                   "NO_COLOR": "1", "COLUMNS": "100", "PYTHONWARNINGS": "ignore:IProgress not found"}  # fmt: skip
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=seconds, resources=where, kernel_name="python3")
    client.execute(env=environment)


def cleaned(notebook: Any) -> None:
    """Takes out what only says where and when it was executed."""
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "text" in output:
                output["text"] = _without_places(output["text"])
            for kind, text in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output["data"][kind] = _without_places(text)


def _without_places(text: str) -> str:
    """Terminal colours and the folders of this machine."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    for folder in (Path.home(), NOTEBOOK.parents[1]):
        text = text.replace(str(folder), "~")
    return text


def main() -> None:
    notebook = read()
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder), seconds=600)
    cleaned(notebook)
    notebook.metadata[SOURCES] = digest(notebook)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.stat().st_size:,} bytes: {NOTEBOOK}")


if __name__ == "__main__":
    main()
