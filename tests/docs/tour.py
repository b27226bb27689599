"""The notebook docs/tour.ipynb: `python tests/docs/tour.py` executes it on the real models and stores its outputs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
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


def run_cells(sources: Sequence[str], folder: Path) -> list[str]:
    """Runs cells in `folder`, in this process; what each has printed or shown as text.

    `!perceptune ...` is the command without a Python of its own, and there is no kernel: this takes a quarter of the
    processor time of `execute`, whose outputs are the ones to store. Raises what a cell raises.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    os.chdir(folder)
    os.environ.update(IPYTHONDIR=str(folder / ".ipython"), NO_COLOR="1", COLUMNS="100")
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    shell.system = lambda line: _command(shell.var_expand(line))  # type: ignore[method-assign]
    told = []
    for source in sources:
        with capture_output() as said:
            done = shell.run_cell(source)
            done.raise_error()
        forms = [one.data for one in said.outputs]
        if done.result is not None:  # the value of the last line
            forms.append(shell.display_formatter.format(done.result)[0])
        shown = [str(text) for form in forms for kind, text in form.items() if kind.startswith("text/")]
        told.append("\n".join([said.stdout, *shown]))
    return told


def _command(line: str) -> None:
    """A line behind `!`; of what a shell knows, `> FILE 2>&1` alone."""
    from perceptune.cli.main import run as cli

    words = shlex.split(line)
    file = words[words.index(">") + 1] if ">" in words else None
    words = words[1 : words.index(">")] if ">" in words else words[1:]
    with contextlib.ExitStack() as stack:
        if file is not None:
            out = stack.enter_context(Path(file).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(out))
        code = cli(words)
    if code:
        raise RuntimeError(f"`{line}` ended with {code}")


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
        execute(notebook, Path(folder), seconds=1800)
    cleaned(notebook)
    notebook.metadata[SOURCES] = digest(notebook)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.stat().st_size:,} bytes: {NOTEBOOK}")


if __name__ == "__main__":
    main()
