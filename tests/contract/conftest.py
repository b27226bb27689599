"""Leaves out the rows that the matrix does not have (`rows.is_run`), and those that are not needed for all pairs.

What is promised for every method, on every LM family, in every test is a product of three factors and more. Of its
rows those are run that have every two values together: each test with each method, each with each family, each method
with each family. What is asked for by name is run whole, and so is everything with `--whole`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import support
from pairs import covering
from rows import FAMILIES, is_run

HERE = Path(__file__).parent  # pytest hands over the tests of other folders, too
FACTORS = ("family", "kind")  # beside `name`, the method


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _exists(item)]
    if config.getoption("whole"):
        return
    rows = [item for item in items if _is_row(item)]
    chosen = {rows[index].nodeid for index in covering([_factors(item) for item in rows])}
    left_out = [item for item in rows if item.nodeid not in chosen]
    config.hook.pytest_deselected(items=left_out)
    gone = {item.nodeid for item in left_out}
    items[:] = [item for item in items if item.nodeid not in gone]


def _given(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _exists(item: pytest.Item) -> bool:
    given = _given(item)
    return "name" not in given or "family" not in given or is_run(str(given["name"]), str(given["family"]))


def _is_row(item: pytest.Item) -> bool:
    given = _given(item)
    in_matrix = item.path.parent == HERE and "name" in given and any(factor in given for factor in FACTORS)
    return in_matrix and item.get_closest_marker("whole") is None


def _factors(item: pytest.Item) -> dict[str, str]:
    return {"test": item.nodeid.partition("[")[0]} | {key: str(value) for key, value in _given(item).items()}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LM of each family by its name, `encoder`, and `data/train.jsonl` with six rows."""
    folder = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        support.save_lm(folder / family, family)
    support.save_encoder(folder / "encoder")
    support.save_data(folder / "data", rows=6)
    return folder
