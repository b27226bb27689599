"""The log of a run, one JSON line per step and event, and the progress bar."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perceptune.errors import disk_errors
from perceptune.utils.trackers import Trackers

LOG = "log.jsonl"
WORTH_SAYING = 20  # seconds; a shorter remaining time is not printed


def is_main_process() -> bool:
    """Return whether this process may write to the terminal: only rank 0 of several."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") in ("", "1")


class RunLog:
    """The log of a run, `log.jsonl` in its folder. When resuming, rows after the resumed step are removed first.

    A line is flushed to the system at once but not synced to disk: a kill loses no line, a power cut may lose the last.
    """

    def __init__(self, run: Path, *, resumed_at: int | None = None, trackers: Trackers | None = None) -> None:
        self.path, self.trackers = run / LOG, trackers
        rows = [row for row in read_log(run) if row.get("step", 0) <= resumed_at] if resumed_at is not None else []
        self._append("".join(json.dumps(row) + "\n" for row in rows), "w")

    def write(self, event: str, **values: Any) -> None:
        """Append the row of an event and send its values to the trackers."""
        self._append(json.dumps({"event": event, **values}) + "\n", "a")
        if self.trackers is not None:
            self.trackers.write(event, values)

    def close(self) -> None:
        """Close the trackers."""
        if self.trackers is not None:
            self.trackers.close()

    def _append(self, text: str, mode: str) -> None:
        with disk_errors(self.path), self.path.open(mode, encoding="utf-8") as file:
            file.write(text)


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's log up to the first incomplete line, which a crash may have left."""
    path = run / LOG
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """A progress bar on stderr, shown only on a terminal.

    With `timed`, the remaining time is printed on stderr after that number of steps, even if no bar is shown.
    """

    def __init__(self, total: int, label: str, done: int = 0, timed: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console,
            disable=not (console.is_terminal and is_main_process()),
        )  # fmt: skip
        self.task = self.bar.add_task(label, total=total, completed=done, note="")
        self._total, self._first, self._done, self._timed = total, done, done, timed if is_main_process() else 0
        self._began = time.monotonic()

    def advance(self, by: int = 1, note: str = "") -> None:
        """Advance by `by` steps; `note` is shown beside the bar."""
        self.bar.update(self.task, advance=by, note=note)
        self._done += by
        if self._timed and self._done - self._first == self._timed:
            self._say_time_left((time.monotonic() - self._began) / self._timed)

    def expect(self, more: int) -> None:
        """Add `more` steps to the total."""
        self._total += more
        self.bar.update(self.task, total=self._total)

    def _say_time_left(self, seconds: float) -> None:
        left = (self._total - self._done) * seconds
        if left > WORTH_SAYING:
            words = f"about {math.ceil(left / 60)} min" if left > 90 else f"about {left:.0f} s"
            more = self._total - self._done
            self.bar.console.print(f"{seconds:.2f} s a step: {more} steps more take {words} at most")


@contextmanager
def progress(total: int, label: str, done: int = 0, *, timed: int = 0) -> Iterator[Progress]:
    """Show a progress bar while the block runs; `timed` as in `Progress`."""
    shown = Progress(total, label, done, timed)
    with shown.bar:
        yield shown
