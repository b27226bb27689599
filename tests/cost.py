"""What tests cost: processor seconds, those of the processes that they start included.

    make test COST=FOLDER                  measures each test; the table comes at the end
    python tests/cost.py FOLDER            the table once more
    python tests/cost.py FOLDER --slow     writes `tests/slow.txt`: what `make test-fast` leaves out

Processor time, unlike time, hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow.txt")
MOST = 0.5  # processor seconds of a test, all its parameters together, that `make test-fast` still runs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cost", metavar="FOLDER", help="write the processor seconds of each test into a new folder")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Set-up and clean-up included; each process of pytest-xdist has a file of its own."""
    before = _spent()
    result = yield
    if folder := item.config.getoption("cost"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with Path(folder, f"{os.getpid()}.tsv").open("a", encoding="utf-8") as file:
            file.write(f"{item.nodeid}\t{_spent() - before:.3f}\n")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if folder := terminalreporter.config.getoption("cost"):
        terminalreporter.write(table(costs(Path(folder))) + "\n")


def _spent() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def costs(folder: Path) -> Counter[str]:
    """Seconds by test, all its parameters together."""
    found: Counter[str] = Counter()
    for file in folder.glob("*.tsv"):
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, seconds = line.rpartition("\t")
            found[name.partition("[")[0]] += float(seconds)  # type: ignore[assignment]
    return found


def table(found: Counter[str], rows: int = 25) -> str:
    """All folders, and the dearest files and tests."""
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, seconds in found.items():
        file = name.partition("::")[0]
        parts["folder"][str(Path(file).parent)] += seconds
        parts["file"][file] += seconds
        parts["test"][name] += seconds
    lines = [f"{sum(found.values()):10.1f} processor seconds in tests"]
    for counted in parts.values():
        lines += ["", *(f"{seconds:10.1f} {name}" for name, seconds in counted.most_common(rows))]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slow", action="store_true", help=f"write {SLOW.name}")
    asked = parser.parse_args()
    found = costs(asked.folder)
    print(table(found))
    if asked.slow:
        names = sorted(name for name, seconds in found.items() if name.startswith("tests/unit/") and seconds > MOST)
        SLOW.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        print(f"\n{len(names)} tests in {SLOW}")


if __name__ == "__main__":
    main()
