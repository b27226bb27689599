"""Loading with transformers: without its reports, and with an error for missing weights."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from perceptune.errors import UserError

MISMATCHED = "has other shapes of"


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppress progress bars and the table of unused weights; `require_all_weights` raises for those that matter."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def require_all_weights(source: str, report: Mapping[str, Any], unexpected: set[str] | None = None) -> None:
    """Raise `UserError` for weights that `from_pretrained` did not find, that do not fit, or that are `unexpected`."""
    problems = {
        "lacks": report["missing_keys"],
        "has unknown": unexpected,
        MISMATCHED: {key for key, *_ in report["mismatched_keys"]},
    }
    for problem, keys in problems.items():
        if keys:
            note = " (mismatched sizes)" if problem == MISMATCHED else ""
            raise UserError(f"{source}: the checkpoint {problem} {len(keys)} weights, first `{min(keys)}`{note}")
