"""The installed wheel works outside the checkout, without network: recipes and configurations travel with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def perceptune(installed: Path, cwd: Path, *arguments: str) -> str:
    """Runs the command from the wheel; the checkout is not on the path."""
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import perceptune; from pathlib import Path;"
        f"assert Path(perceptune.__file__).is_relative_to({str(installed)!r}), perceptune.__file__;"
        f"from perceptune.cli.main import main; main({list(arguments)!r})"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_recipes_and_published_configurations_are_inside(installed: Path, tmp_path: Path) -> None:
    names = [entry["name"] for entry in json.loads(perceptune(installed, tmp_path, "list", "recipes", "--json"))]
    root = ROOT / "recipes"
    shipped = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    assert names == shipped
    shown = json.loads(perceptune(installed, tmp_path, "show", "paper/epalm", "--json"))
    assert shown["trainable"] == 24_949_760
    assert json.loads(perceptune(installed, tmp_path, "show", "demo", "--json"))["trainable"] == 1_336_320


def test_nothing_else_is_inside(installed: Path) -> None:
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"perceptune"}
    assert (installed / "perceptune/py.typed").is_file()
    page = ROOT / "src/perceptune/serving/page"
    served = installed / "perceptune/serving/page"
    assert {path.name for path in served.iterdir()} == {path.name for path in page.iterdir()} >= {"index.html"}
    assert not list(installed.rglob("tests"))
