"""The installed wheel works outside the checkout, without network: recipes and configurations travel with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from perceptune.config.recipe import FACTS

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


def perceptune(installed: Path, cwd: Path, *commands: list[str]) -> list[str]:
    """What commands from the wheel print, one after the other; the checkout is not on the path."""
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import perceptune; from pathlib import Path;"
        f"assert Path(perceptune.__file__).is_relative_to({str(installed)!r}), perceptune.__file__;"
        f"from perceptune.cli.main import run; [(run(words), print(chr(0))) for words in {list(commands)!r}]"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0\n")


def test_recipes_and_published_configurations_are_inside(installed: Path, tmp_path: Path) -> None:
    listed, paper, demo, _ = perceptune(
        installed, tmp_path,
        ["list", "recipes", "--json"], ["show", "paper/epalm", "--json"], ["show", "demo", "--json"],
    )  # fmt: skip
    names = [entry["name"] for entry in json.loads(listed)]
    root = ROOT / "recipes"
    recipes = (path for path in root.rglob("*.yaml") if path.name != FACTS)
    shipped = sorted(path.relative_to(root).with_suffix("").as_posix() for path in recipes)
    assert names == shipped
    assert json.loads(paper)["trainable"] == 24_949_760
    assert json.loads(demo)["trainable"] == 863_808


def test_nothing_else_is_inside(installed: Path) -> None:
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"perceptune"}
    assert (installed / "perceptune/py.typed").is_file()
    page = ROOT / "src/perceptune/serving/page"
    served = installed / "perceptune/serving/page"
    assert {path.name for path in served.iterdir()} == {path.name for path in page.iterdir()} >= {"index.html"}
    assert not list(installed.rglob("tests"))
