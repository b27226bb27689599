"""Server metrics in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

disable_created_metrics()  # a second series for each counter, with its creation time

_COUNTERS = {
    "requests_total": ("Requests by route and status", ("route", "status")),
    "rejected_total": ("Requests that found no place, by reason", ("reason",)),
    "cancelled_total": ("Requests whose client went away", ()),
    "failures_total": ("Answers that could not be computed, by kind of error", ("kind",)),
    "reused_turns_total": ("Answers for which earlier turns were not computed again", ()),
    "prompt_tokens_total": ("Tokens of prompts", ()),
    "completion_tokens_total": ("Tokens of answers", ()),
}
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_HISTOGRAMS = {
    "request_seconds": ("Time from a request's first byte to the end of its answer", _SECONDS),
    "batch_rows": ("Answers computed together, token by token", (1, 2, 4, 8, 16, 32, 64)),
    "batch_seconds": ("Time of a token for all of them, prompts of newcomers included", _SECONDS),
}


class Metrics:
    """Metrics of one server. Label values are the server's own: none comes from a request."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"perceptune_{name}", meaning, labels, registry=self._registry)
            for name, (meaning, labels) in _COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(f"perceptune_{name}", meaning, buckets=bounds, registry=self._registry)
            for name, (meaning, bounds) in _HISTOGRAMS.items()
        }

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc(by)

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self._histograms[name].observe(value)

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Register a gauge whose value is read at each scrape."""
        Gauge(f"perceptune_{name}", meaning, registry=self._registry).set_function(value)

    def text(self) -> str:
        """Return all metrics as text."""
        return generate_latest(self._registry).decode()
