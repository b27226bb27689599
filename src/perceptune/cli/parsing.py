"""The parser of the command line: additions to argparse."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

Namespace = argparse.Namespace


class Overrides(NamedTuple):
    """Rules for KEY=VALUE words of a command, which may stand anywhere."""

    beside: str | None  # the positional that takes all other words
    prefixes: tuple[str, ...]  # prefixes of such words, if `=` is not enough to recognise them

    def include(self, word: str) -> bool:
        """Return whether a word is an override."""
        return word.startswith(self.prefixes) if self.prefixes else "=" in word


class Parser(argparse.ArgumentParser):
    """Rejects empty values, and repeated options, of which argparse would silently take the last."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.formatter_class = argparse.RawDescriptionHelpFormatter  # examples keep their lines
        for name in (None, "store"):
            self.register("action", name, StoreOnce)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Convert a value; an empty one, such as a script's unset variable, would count as not given."""
        if not arg_string and action.nargs != argparse.PARSER and action.type is not any_text:
            raise argparse.ArgumentError(action, "is empty")
        return super()._get_value(action, arg_string)

    def add_overrides(self, help: str, *, beside: str | None = None, prefixes: tuple[str, ...] = ()) -> None:
        """Accept KEY=VALUE words as `options.overrides`, wherever they stand."""
        self.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=help)
        self.set_defaults(overrides_rule=Overrides(beside, prefixes))

    def add_trust(self) -> None:
        """Add the flag of commands that load a run, whose recipe may be untrusted."""
        self.add_argument("--trust", action="store_true", help="let a run folder's recipe name third-party code")

    def add_ensemble(self) -> None:
        """Add the option of commands that answer by several runs together."""
        told = "answer together with this run of the same LM, by the mean of their probabilities; may be repeated"
        self.add_argument("--ensemble", metavar="RUN", action="append", default=[], help=told)

    def add_media(self) -> None:
        """Add the option of the folder of media."""
        told = "folder of the media that rows name (default: found beside them)"
        self.add_argument("--media", metavar="DIR", help=told)

    def add_fetch_media(self) -> None:
        """Add the flag of commands that read data sets."""
        told = "fetch media at http(s) addresses in rows into perceptune's cache, each once"
        self.add_argument("--fetch-media", action="store_true", help=told)

    def add_json(self) -> None:
        """Add the flag for machine-readable output."""
        self.add_argument("--json", action="store_true", help="print JSON")

    def add_join_timeout(self) -> None:
        """Add the option of commands that run as several processes."""
        told = "seconds to wait for the other processes of one job (default: 600)"
        self.add_argument("--join-timeout", type=float, metavar="SECONDS", help=told)


def place_overrides(options: Namespace, rest: Sequence[str]) -> list[str]:
    """Split the words that argparse did not place into overrides and others; return those that no argument takes."""
    rule: Overrides | None = vars(options).get("overrides_rule")
    if rule is None:
        return [*rest]
    left = [word for word in rest if word.startswith("-")]
    words = [word for word in rest if not word.startswith("-")]
    if rule.beside is None:
        options.overrides += filter(rule.include, words)
        return [*left, *(word for word in words if not rule.include(word))]
    given = getattr(options, rule.beside)
    several = isinstance(given, list)
    words = [*(given if several else [given] if given else []), *options.overrides, *words]
    named = [word for word in words if not rule.include(word)]
    options.overrides = [word for word in words if rule.include(word)]
    setattr(options, rule.beside, named if several else next(iter(named), None))
    return left if several else [*left, *named[1:]]


class StoreOnce(argparse.Action):
    """Stores an option's value once. Repeatable options use `action="append"`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        given = namespace.__dict__.setdefault("_given", set())
        if option is not None and self.dest in given:
            before = getattr(namespace, self.dest)
            raise argparse.ArgumentError(self, f"given twice, `{before}` and `{values}`: it takes one")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def any_text(text: str) -> str:
    """Accept a value that may be empty, unlike others."""
    return text


def positive(text: str) -> int:
    """Parse a whole number of at least 1. Raises `argparse.ArgumentTypeError` for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> float:
    """Parse a number of at least 0. Raises `argparse.ArgumentTypeError` for anything else."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of at least 0")
    return number


def split_words(text: str | None) -> list[str]:
    """Return the words of a comma-separated list."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def words_of(options: Namespace) -> list[str]:
    """Return the overrides of a command that reads data, with the one that `--fetch-media` stands for."""
    return [*options.overrides, *(["task.fetch_media=true"] if options.fetch_media else [])]
