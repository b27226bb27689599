"""Leaves out the rows that the matrix does not have (`rows.is_run`)."""

from __future__ import annotations

import pytest

from rows import is_run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _wanted(item)]


def _wanted(item: pytest.Item) -> bool:
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return "name" not in given or "family" not in given or is_run(given["name"], given["family"])
