"""The planted faults still fit the code: their lines stand there, and the tests that catch them exist."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mutants import ROOT, SOURCES, mutants, mutated

AREAS = ("lm", "split", "methods", "training", "evaluation", "data", "serving")


def test_sixty_faults_and_more_are_spread_over_all_areas() -> None:
    names = [one.name for one in mutants()]
    assert len(set(names)) == len(names) >= 60
    areas = Counter(name.partition("-")[0] for name in names)
    assert set(areas) == set(AREAS)
    assert min(areas.values()) >= 8


@pytest.mark.parametrize("area", AREAS)
def test_each_line_stands_once_and_each_test_exists(area: str) -> None:
    for one in mutants():
        if not one.name.startswith(f"{area}-"):
            continue
        text = (SOURCES / one.file).read_text(encoding="utf-8")
        assert mutated(text, one) != text
        compile(mutated(text, one), one.file, "exec")
        assert one.tests, f"{one.name}: nothing catches it"
        for test in one.tests:
            file, _, name = test.partition("::")
            said = (ROOT / file).read_text(encoding="utf-8")
            assert not name or re.search(rf"^(async )?def {name.partition('[')[0]}\(", said, re.M), test


def test_a_line_that_is_gone_or_stands_twice_is_said() -> None:
    one = mutants()[0]
    for text in ("", f"{one.old}\n{one.old}\n"):
        with pytest.raises(ValueError, match=re.escape(one.name)):
            mutated(text, one)
