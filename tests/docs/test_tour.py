"""The notebook docs/tour.ipynb: its stored outputs are those of its code, and the code runs."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import yaml

import runs
import tour
from forks import Fork


def test_the_stored_outputs_are_those_of_the_code() -> None:
    notebook = tour.read()
    cells = tour.code_cells(notebook)
    assert notebook.metadata[tour.SOURCES] == tour.digest(notebook), "run `python tests/docs/tour.py`"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "in one go, from the top"
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}, "no errors"
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) - 1, "all but the parameters say something"


def test_the_stored_outputs_are_small_and_name_no_places() -> None:
    assert tour.NOTEBOOK.stat().st_size < 300_000
    told = "\n".join(map(tour.words, tour.code_cells(tour.read())))
    assert not re.search(r"(?<![\w~.:/])/(home|root|tmp|work|Users|opt|var)/", told)
    assert "Traceback" not in told
    assert "Warning" not in told


def test_it_runs(dwarfs: Path, tmp_path: Path) -> None:
    """On dwarfs, with a few steps; everything but the cell of parameters as it stands."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(runs.recipe(dwarfs) | {"name": "small"}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    notebook = tour.read()
    cells = tour.code_cells(notebook)
    [parameters] = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    given = {"RECIPE": str(recipe), "RUN": "runs/tour", "SMALL": ["eval.samples=8"], "PORT": port}
    assert set(re.findall(r"^(\w+) = ", parameters.source, flags=re.M)) == set(given)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    sources = [cell.source for cell in cells]

    def run() -> None:  # in a process of its own: cells change its folder and what it imports
        (tmp_path / "told.json").write_text(json.dumps(tour.run_cells(sources, tmp_path)))

    assert Fork(run, tmp_path / "said").wait() == 0, (tmp_path / "said").read_text()[-3000:]
    said = dict(enumerate(json.loads((tmp_path / "told.json").read_text())))
    [loaded] = [text for text in said.values() if "what color is the shape?" in text]
    served = next(
        text for text in said.values() if text.startswith("what shape is in the image?") and text not in loaded
    )
    assert served.split() == loaded.splitlines()[0].split(), "the server answers as the loaded run"
    assert any("limber" in text and "epalm" in text for text in said.values()), "both methods in a table"
    assert "stopped" in said[len(cells) - 1]
