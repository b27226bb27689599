"""One item is made ahead in a thread; errors surface where the item is asked for."""

from __future__ import annotations

import contextlib
import threading

import pytest

from perceptune.errors import UserError
from perceptune.training.batch_loader import Prefetch


def test_the_next_item_is_made_in_the_background_and_only_once() -> None:
    made: list[tuple[int, str]] = []

    def make(number: int) -> int:
        made.append((number, threading.current_thread().name))
        return number * number

    with contextlib.closing(Prefetch(make)) as items:
        assert items.get(3) == 9
        items.start(4)
        items.wait()
        assert [number for number, _ in made] == [3, 4]
        assert items.get(4) == 16
        items.start(5)
        assert items.get(7) == 49  # another one than was prepared
    assert [number for number, _ in made] == [3, 4, 5, 7]
    assert [name.startswith("prefetch") for _, name in made] == [False, True, True, False]


def test_an_error_waits_for_whoever_asks() -> None:
    def make(number: int) -> int:
        raise UserError(f"item {number} is broken")

    with contextlib.closing(Prefetch(make)) as items:
        items.start(1)
        items.wait()
        with pytest.raises(UserError, match="item 1 is broken"):
            items.get(1)
