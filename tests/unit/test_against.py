"""Two commits in turns: who is measured when, and what is called slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against, sides

ROWS = ("train epalm", "answer greedy")


class Fake:
    """A side whose processor times are given; the first turn, a warm-up, takes ten times as long."""

    def __init__(self, name: str, turns: list[tuple[str, str]], *seconds: float, result: str = "a dog") -> None:
        self.name, self.turns, self.result = name, turns, result
        self.seconds: Iterator[float] = cycle(seconds)
        self.warm: set[str] = set()

    def ask(self, row: str) -> dict[str, Any]:
        self.turns.append((row, self.name))
        cold = row not in self.warm
        self.warm.add(row)
        cpu = 10.0 if cold else next(self.seconds)
        return {"cpu": cpu, "wall": 2 * cpu, "result": [self.result]}

    def cold(self) -> Fake:
        """The same, started again."""
        self.warm = set()
        return self

    def close(self) -> None:
        """Nothing is open."""


def compared(new: tuple[float, ...], rounds: int = 15, **changes: Any) -> list[against.Verdict]:
    turns: list[tuple[str, str]] = []
    new_side = Fake("new", turns, *new, **changes)
    return against.compare(lambda: nullcontext({"old": Fake("old", turns, 1.0), "new": new_side.cold()}), ROWS, rounds)


@pytest.mark.parametrize(
    ("new", "slower"),
    [
        ((1.0,), False),
        ((0.5,), False),
        ((1.1,), True),
        ((1.08, 1.2, 1.1), True),
        ((1.04,), False),  # surely slower, but by less than is tolerated
        ((0.7, 1.5), False),  # the median is above the limit in most draws, the interval is not
    ],
)
def test_slower_is_a_median_above_the_limit_with_an_interval_above_one(new: tuple[float, ...], slower: bool) -> None:
    verdict = compared(new)[0]
    assert verdict.is_slower is slower
    assert verdict.low <= verdict.ratio <= verdict.high
    assert ("SLOWER" in against.table([verdict])) is slower


def test_every_round_has_each_row_of_both_sides_and_each_side_goes_first_as_often() -> None:
    turns: list[tuple[str, str]] = []
    starts: list[int] = []

    def start() -> Any:
        starts.append(len(turns))
        return nullcontext({"old": Fake("old", turns, 1.0), "new": Fake("new", turns, 2.0)})

    verdicts = against.compare(start, ROWS, 12)
    assert starts == [0, 24, 48]  # five rounds and a warm-up each
    measured = [turn for begin, end in ((4, 24), (28, 48), (52, 60)) for turn in turns[begin:end]]
    pairs = list(zip(measured[::2], measured[1::2], strict=True))
    assert all(first[0] == second[0] and {first[1], second[1]} == {"old", "new"} for first, second in pairs)
    for row in ROWS:
        firsts = [first[1] for first, _ in pairs if first[0] == row]
        assert firsts.count("old") == firsts.count("new") == 6
    assert [verdict.row for verdict in verdicts] == list(ROWS)
    assert verdicts[0].cpu == {"old": [1.0] * 12, "new": [2.0] * 12}  # without the warm-ups
    assert verdicts[0].wall["new"] == [4.0] * 12


@pytest.mark.parametrize("result", ["a dog", "a cat"])
def test_results_that_differ_are_said(result: str) -> None:
    verdicts = compared((1.0,), rounds=1, result=result)
    assert verdicts[0].same_results is (result == "a dog")
    assert ("differ" in against.table(verdicts)) is (result == "a cat")


@pytest.mark.parametrize(("seconds", "code"), [(1.0, 0), (1.2, 1)])
def test_the_program_says_by_its_exit_code_whether_a_row_is_slower(
    seconds: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns: list[tuple[str, str]] = []
    workers = [Fake("new", turns, seconds), Fake("old", turns, 1.0)]
    monkeypatch.setattr(sides, "make_models", lambda folder: folder)
    monkeypatch.setattr(sides, "source_of", lambda commit, folder: folder)
    monkeypatch.setattr(sides, "Side", lambda *_: workers.pop())
    file = tmp_path / "measured.json"
    assert against.main(["one", "two", "--rounds", "3", "--rows", "answer", "--json", str(file)]) == code
    assert "train" not in capsys.readouterr().out
    assert file.read_text().count('"row"') == 5


def test_what_is_no_commit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert against.main(["no-such-commit", ".", "--rounds", "1"]) == 2
    assert "no-such-commit" in capsys.readouterr().err


def test_a_checkout_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert sides.source_of(str(tmp_path), tmp_path / "elsewhere") == tmp_path / "src"
