"""Files that hosts of repositories and citation tools read: each says what is true of the package."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from perceptune import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
FORMS = [ROOT / ".github/ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands() -> list[str]:
    return [step["run"] for job in parsed(WORKFLOW)["jobs"].values() for step in job["steps"] if "run" in step]


def test_continuous_integration_runs_every_supported_python() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    matrix = parsed(WORKFLOW)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == [f"3.{minor}" for minor in range(40) if f"3.{minor}.0" in supported]


def test_continuous_integration_runs_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    run = " ".join(commands()).split()
    targets = [word for before, word in itertools.pairwise(run) if before == "make"]
    assert {"lint", "test", "docs"} <= set(targets)
    for target in targets:
        assert f"\n{target}:" in makefile, target


def test_continuous_integration_caches_by_the_files_that_decide_the_environment() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    for file in ("pyproject.toml", "constraints.txt"):
        assert file in text
        assert (ROOT / file).exists()
    assert "torch==" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_complete(form: Path) -> None:
    """A form needs a name, a description and fields with unique ids; text that is only shown needs none."""
    content = parsed(form)
    assert content["name"]
    assert content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_every_yaml_file_of_the_repository_is_valid() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml"]
    assert len(files) >= 6
    for file in files:
        assert isinstance(parsed(file), dict), file


def test_the_citation_is_of_this_version() -> None:
    citation = parsed(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert {reference["collection-title"] for reference in citation["references"] if "collection-title" in reference}
    assert "2312.12458" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_security_page_names_a_way_to_report() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for word in ("Report a vulnerability", "safetensors", "weights_only"):
        assert word in text
