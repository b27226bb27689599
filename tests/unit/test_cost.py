"""What tests cost, and which of them the fast loop leaves out."""

from __future__ import annotations

import re
from pathlib import Path

import cost

ROOT = Path(__file__).parents[2]


def test_what_the_fast_loop_leaves_out_exists() -> None:
    names = cost.SLOW.read_text(encoding="utf-8").split()
    assert names == sorted(names)
    for name in names:
        file, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.M), name


def test_seconds_of_all_processes_are_added_up_by_test_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "1.tsv").write_text("tests/unit/test_a.py::test_x[1]\t0.500\ntests/unit/test_b.py::test_y\t2.000\n")
    (tmp_path / "2.tsv").write_text("tests/unit/test_a.py::test_x[a\tb]\t1.000\n")
    found = cost.costs(tmp_path)
    assert found == {"tests/unit/test_a.py::test_x": 1.5, "tests/unit/test_b.py::test_y": 2.0}
    lines = [line.split() for line in cost.table(found).splitlines()]
    assert lines[0][0] == "3.5"
    assert ["3.5", "tests/unit"] in lines
    assert lines.index(["2.0", "tests/unit/test_b.py"]) < lines.index(["1.5", "tests/unit/test_a.py"])
