"""What the demo asks of a machine before it fetches anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from perceptune.errors import UserError
from perceptune.tools import demo, doctor
from perceptune.utils import downloads


def test_a_small_machine_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(demo, "total_memory", lambda: 2 * doctor.GIB)
    monkeypatch.setattr(downloads, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UserError, match=r"needs 4 GiB of memory, and there are 2\.0 GiB here"):
        demo.run_demo(tmp_path / "run")


@pytest.mark.parametrize(("written", "expected"), [("1073741824\n", 2**30), ("max\n", None), (None, None)])
def test_the_limit_of_a_container_counts(
    written: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    if written is not None:
        file.write_text(written)
    monkeypatch.setattr(doctor, "CGROUP_LIMIT", file)
    physical = doctor.os.sysconf("SC_PHYS_PAGES") * doctor.os.sysconf("SC_PAGE_SIZE")
    assert doctor.total_memory() == (expected or physical)
