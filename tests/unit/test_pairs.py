"""Rows that are enough for all pairs."""

from __future__ import annotations

from itertools import combinations, product

from pairs import covering

ROWS = [
    {"test": test, "method": method, "family": family}
    for test, method, family in product("abcdef", range(9), "uvwxyz")
    if not (family == "z" and method > 3)  # not every combination exists
]


def pairs(rows: list[dict[str, object]]) -> set[tuple[object, ...]]:
    return {pair for row in rows for pair in combinations(row.items(), 2)}


def test_every_pair_that_stands_anywhere_stands_in_a_chosen_row() -> None:
    chosen = [ROWS[index] for index in covering(ROWS)]
    assert pairs(chosen) == pairs(ROWS)
    assert 54 <= len(chosen) < 70, "the two longest factors' pairs, and little more"
    assert covering(ROWS) == covering(ROWS)


def test_rows_without_pairs_are_not_needed_and_rows_with_two_factors_all_are() -> None:
    assert covering([]) == covering([{"a": 1}, {"a": 2}]) == []
    assert covering([{"a": 1, "b": 1}, {"a": 1, "b": 2}]) == [0, 1]
