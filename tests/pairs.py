"""All pairs in place of all combinations: which rows of a table of factors are enough."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations


def covering(rows: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Indices, in order, of some rows: any two values that stand together in a row stand together in one of them.

    A row names the value of each of its factors. Faults nearly always show with some value of one factor, or with two
    values together; a product of three factors is mostly repetition. The same rows give the same choice.
    """
    pairs_of = [set(combinations(sorted(row.items(), key=lambda item: item[0]), 2)) for row in rows]
    left = set().union(*pairs_of)
    # A row's gain only ever falls: one whose gain is still what it was, and the largest, is the best there is.
    gains = [(-len(pairs), index) for index, pairs in enumerate(pairs_of) if pairs]
    heapq.heapify(gains)
    chosen: list[int] = []
    while left:
        before, index = heapq.heappop(gains)
        gain = len(pairs_of[index] & left)
        if gain == -before:
            chosen.append(index)
            left -= pairs_of[index]
        elif gain:
            heapq.heappush(gains, (-gain, index))
    return sorted(chosen)
