"""Counters in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

_HELP = {
    "requests_total": "Requests by route and status",
    "rejected_total": "Requests that found no place, by reason",
    "cancelled_total": "Requests whose client went away",
    "failures_total": "Answers that could not be computed, by kind of error",
    "prompt_tokens_total": "Tokens of prompts",
    "completion_tokens_total": "Tokens of answers",
    "request_seconds": "Time from a request's first byte to the end of its answer",
    "batch_rows": "Answers computed together, token by token",
    "batch_seconds": "Time of a token for all of them, prompts of newcomers included",
}
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_BOUNDS = {"request_seconds": _SECONDS, "batch_seconds": _SECONDS, "batch_rows": (1, 2, 4, 8, 16, 32, 64)}


class Metrics:
    """Written and read in the server's thread. Labels are the server's own words: none comes from a request."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._counts: dict[str, list[int]] = {name: [0] * (len(bounds) + 1) for name, bounds in _BOUNDS.items()}
        self._sums: dict[str, float] = defaultdict(float)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        self._counters[name][_labels(labels)] += by

    def observe(self, name: str, value: float) -> None:
        """Adds a value to a histogram."""
        self._counts[name][bisect_left(_BOUNDS[name], value)] += 1
        self._sums[name] += value

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A value to be asked for when it is wanted."""
        self._gauges[name] = (meaning, value)

    def text(self) -> str:
        """All of them."""
        lines: list[str] = []
        for name, values in sorted(self._counters.items()):
            lines += _head(name, _HELP[name], "counter")
            lines += [f"perceptune_{name}{labels} {_number(value)}" for labels, value in sorted(values.items())]
        for name, (meaning, value) in sorted(self._gauges.items()):
            lines += [*_head(name, meaning, "gauge"), f"perceptune_{name} {_number(value())}"]
        for name, counts in sorted(self._counts.items()):
            lines += _head(name, _HELP[name], "histogram")
            total = 0
            for bound, count in zip((*(f"{one:g}" for one in _BOUNDS[name]), "+Inf"), counts, strict=True):
                total += count
                lines.append(f'perceptune_{name}_bucket{{le="{bound}"}} {total}')
            lines += [f"perceptune_{name}_sum {_number(self._sums[name])}", f"perceptune_{name}_count {total}"]
        return "\n".join(lines) + "\n"


def _head(name: str, meaning: str, kind: str) -> list[str]:
    return [f"# HELP perceptune_{name} {meaning}", f"# TYPE perceptune_{name} {kind}"]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}" if labels else ""
