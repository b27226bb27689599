"""The studies' plan: what it holds, what runs side by side, and which finished runs are taken."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

import origin
import planning
from lanes import run_lanes
from perceptune.errors import UserError

PLAN = planning.load_plan()


def test_the_plan_adds_up_to_six_hours_in_parts_of_twenty_minutes() -> None:
    for part in PLAN.parts:
        assert part.minutes / part.sittings <= planning.MOST, part.name
        long = [command for command in part.commands if command.startswith("perceptune")]
        assert part.sittings == 1 or 1 in (part.runs, len(long)), "what goes on where it was stopped"
    assert len({part.name for part in PLAN.parts}) == len(PLAN.parts)
    lines = planning.listing(PLAN).splitlines()[2:]
    minutes = [float(line.split("|")[5].split()[0].rstrip(";")) for line in lines]
    assert sum(minutes[:-1]) == pytest.approx(minutes[-1], abs=0.05 * len(lines))
    assert PLAN.hours <= 6.05


def test_finished_runs_of_other_code_are_taken_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = planning.Part("a", "", "", [], ["perceptune compare r.yaml --out {runs}/few/a"], 1, 1)
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setattr(origin, "code", lambda: "0123")
    assert not origin.has_runs(part)
    assert origin.claim(part, keep=False) == 1
    (tmp_path / "runs/study/few/a").mkdir(parents=True)
    assert origin.has_runs(part)
    assert origin.claim(part, keep=False) == 1, "the same code goes on"
    monkeypatch.setattr(origin, "code", lambda: "4567")
    for _ in range(2):
        with pytest.raises(UserError, match=r"runs/study/few/a holds runs of code 0123 .*, not of code 4567 .*--keep"):
            origin.claim(part, keep=False)
    assert origin.claim(part, keep=True) == 2
    with pytest.raises(UserError, match=r"of code 0123 .* and of code 4567"):
        origin.claim(part, keep=False)
    next((tmp_path / "runs/study/state/origins").iterdir()).unlink()
    with pytest.raises(UserError, match="holds runs of unknown origin"):
        origin.claim(part, keep=False)
    (tmp_path / "runs/study/few/a").rmdir()
    assert origin.claim(part, keep=False) == 1, "removed, and made anew"


def test_code_is_what_computes_and_not_what_is_said_of_it() -> None:
    bare = "def f(x):\n    return x + 1\n"
    said = '"""Says."""\n\ndef f(x):\n    """Adds."""\n    # one\n    return x + 1\n'
    assert origin.meaning(said) == origin.meaning(bare)
    assert origin.meaning(bare.replace("1", "2")) != origin.meaning(bare)
    assert origin.meaning(bare.replace("x + 1", "(\n        x\n        + 1)")) == origin.meaning(bare)


def test_a_part_comes_after_what_it_needs(tmp_path: Path) -> None:
    part = {"name": "a", "title": "", "question": "", "published": [], "commands": [], "runs": 1, "seconds": 1}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"parts": [{**part, "needs": ["b"]}, {**part, "name": "b"}], "cannot_tell": []}))
    with pytest.raises(UserError, match="`a` needs `b`, which does not come before"):
        planning.load_plan(path)
    with pytest.raises(UserError, match=r"no part `flagshp`.*flagship"):
        PLAN.named(["flagshp"])


def made_part(name: str, **more: Any) -> planning.Part:
    command = f"perceptune compare x.yaml --out {more.pop('out', name)}"
    return planning.Part(name, "", "", [], [command], runs=1, seconds=1, **more)


def test_parts_run_side_by_side_but_for_what_they_share() -> None:
    parts = [
        made_part("time", alone=True), made_part("a"), made_part("b"), made_part("c", out="a"),
        made_part("d", needs=["c"]), made_part("e"),
    ]  # fmt: skip
    now: set[str] = set()
    seen: list[set[str]] = []
    guard = threading.Lock()
    begun = {part.name: threading.Event() for part in parts}
    after, until = {"b": "a"}, {"a": "b"}  # whatever the machine is busy with, they are seen in this order and at once

    def run(part: planning.Part) -> None:
        assert part.name not in after or begun[after[part.name]].wait(20)
        with guard:
            now.add(part.name)
            seen.append(set(now))
        begun[part.name].set()
        assert part.name not in until or begun[until[part.name]].wait(20)
        with guard:
            now.remove(part.name)

    run_lanes(parts, 2, run)
    assert [sorted(one) for one in seen[:3]] == [["time"], ["a"], ["a", "b"]], seen
    assert all({"a", "c"} != one and {"c", "d"} != one and len(one) <= 2 for one in seen)
    assert set().union(*seen) == {part.name for part in parts}


def test_a_failing_part_stops_only_what_needs_it() -> None:
    begun: list[str] = []

    def run(part: planning.Part) -> None:
        begun.append(part.name)
        if part.name == "a":
            raise UserError("part `a`: wrong")

    with pytest.raises(UserError, match="part `a`: wrong"):
        run_lanes([made_part("a"), made_part("b", needs=["a"]), made_part("c")], 1, run)
    assert begun == ["a", "c"]
