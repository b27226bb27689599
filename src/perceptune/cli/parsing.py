"""The parser of the command line: what argparse leaves to us."""

from __future__ import annotations

import argparse
from typing import Any

# A question and a prompt may be empty where the template is all the text; an empty list of names names none.
_MAY_BE_EMPTY = {"question", "prompt", "allowed_hosts", "allowed_media_domains", "allowed_origins"}


class Parser(argparse.ArgumentParser):
    """Refuses an option that is given twice, of which argparse takes the last one without a word, and empty values."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        for name in (None, "store"):
            self.register("action", name, StoreOnce)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Convert a value; an empty one, as of a script's variable that is not set, would count as not given."""
        if not arg_string and action.nargs != argparse.PARSER and action.dest not in _MAY_BE_EMPTY:
            raise argparse.ArgumentError(action, "is empty")
        return super()._get_value(action, arg_string)


class StoreOnce(argparse.Action):
    """Stores an option's value. One that may be repeated says so by `action="append"`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = namespace.__dict__.setdefault("_given", set())
        if option is not None and self.dest in given:
            before = getattr(namespace, self.dest)
            raise argparse.ArgumentError(self, f"given twice, `{before}` and `{values}`: it takes one")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def positive(text: str) -> int:
    """A whole number of at least 1. Raises `argparse.ArgumentTypeError` for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is no whole number of at least 1")
    return int(text)
