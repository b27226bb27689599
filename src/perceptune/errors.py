"""The one exception a user is meant to see: a mistake in a recipe, a file or a command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with 2.

    The message names the file, key or sample, and the nearest valid choice where there is one.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean ...?` for a mistyped name, or the list of choices, or nothing when there are none."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; choose from {', '.join(f'`{choice}`' for choice in known)}" if known else ""
