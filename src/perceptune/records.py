"""Rows as people write them, one JSON object each: checked key by key, with errors that lead to the mistake."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from perceptune.errors import UserError

MAX_LINE = 2**24  # bytes of one row's text: what is longer is no row, and is never read into memory whole


TEXT = re.compile(r"[^\W_]")  # a letter or a digit


class RowError(UserError):
    """A row that cannot be used; `kind` groups alike mistakes of many rows."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class _NotANumberError(ValueError):
    """`NaN` or `Infinity`, which Python's own parser lets pass and other programs do not."""


def _no_number(constant: str) -> object:
    raise _NotANumberError(f"{constant} is no number in JSON; write null or leave the key out")


DECODER = json.JSONDecoder(parse_constant=_no_number)  # without NaN and infinities, which Python lets pass


class Record(NamedTuple):
    """One object; its errors name where it stands and the key."""

    where: str
    values: dict[str, Any]
    keys: tuple[str, ...]  # those with a meaning; all others are the sample's meta

    def error(self, message: str, kind: str = "wrong-value") -> RowError:
        """What is wrong, with the place in front."""
        return RowError(f"{self.where}: {message}", kind)

    def lacks(self, wanted: Sequence[str]) -> RowError:
        """The error for a row with none of the `wanted` keys: most often one of them is misspelt."""
        names = " or ".join(f"`{key}`" for key in wanted)
        for key in self.values:
            if key not in self.keys and (close := difflib.get_close_matches(key, wanted, n=1, cutoff=0.6)):
                return self.error(f"no key {names}, but `{key}`; did you mean `{close[0]}`?", "missing-key")
        found = ", ".join(f"`{key}`" for key in self.values) or "none"
        return self.error(f"no key {names}; the keys are {found}", "missing-key")

    def text(self, key: str) -> str:
        """The string at `key`."""
        return self.check_text(key, self.values[key])

    def check_text(self, key: str, value: object) -> str:
        """`value` if it is a string that can be encoded."""
        if not isinstance(value, str):
            raise self.error(f"`{key}` is {json_type(value)}, not a string", "wrong-type")
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
            raise self.error(f"`{key}` holds an unpaired surrogate: {short(ascii(value))}", "bad-text") from error
        return value

    def prompt(self, key: str, *, allow_empty: bool) -> str:
        """The question, which holds text unless it may be empty."""
        if self.values.get(key) is None and allow_empty:
            return ""
        if key not in self.values:
            raise self.lacks([key])
        prompt = self.text(key)
        if not allow_empty and not TEXT.search(prompt):
            permitted = "(`allow_empty_prompt: true` permits this)"
            raise self.error(f"`{key}` holds no text: {short(repr(prompt))} {permitted}", "empty-prompt")
        return prompt

    def targets(self, keys: Sequence[str], clean: Callable[[str], str], *, needed: bool) -> tuple[str, ...]:
        """The right answers, at the first of `keys` that holds any; none only where they are not needed."""
        key = next((key for key in keys if self.values.get(key) is not None), None)
        if key is None:
            if needed:
                null = [key for key in keys if key in self.values]
                raise self.error(f"`{null[0]}` is null", "no-targets") if null else self.lacks(keys)
            return ()
        value = self.values[key]
        if not isinstance(value, str | list):
            raise self.error(f"`{key}` is {json_type(value)}, not a string or a list of strings", "wrong-type")
        targets = [value] if isinstance(value, str) else value
        if not targets:
            raise self.error(f"`{key}` is empty", "no-targets")
        for index, target in enumerate(targets):
            if not clean(self.check_text(f"{key}[{index}]", target)):  # it would equal the empty answer
                raise self.error(f"`{key}` holds no text: {short(repr(target))}", "empty-target")
        return tuple(targets)

    def meta(self) -> dict[str, Any]:
        """All other keys; `answer_type` among them is a string."""
        meta = {key: value for key, value in self.values.items() if key not in self.keys}
        if meta.get("answer_type") is None:
            meta.pop("answer_type", None)
        else:
            self.text("answer_type")
        return meta


def parse(text: bytes, where: str, expected: str, encoding: str = "utf-8") -> dict[str, Any] | None:
    """The JSON object in `text`, None where there is only white space. `expected` says what ought to stand there."""
    if len(text) > MAX_LINE:
        raise RowError(f"{where}: longer than {MAX_LINE // 2**20} MiB; expected {expected}", "long-line")
    try:
        line = text.decode(encoding).strip()
        values, end = DECODER.raw_decode(line) if line else (None, 0)
        if end < len(line):
            DECODER.decode(line)  # says what stands behind the first value
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})", "not-utf8") from error
    except _NotANumberError as error:
        raise RowError(f"{where}: invalid JSON: {error}", "nan") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: invalid JSON: {error}; expected {expected}", "invalid-json") from error
    if not line:
        return None
    if not isinstance(values, dict):
        raise RowError(f"{where}: {json_type(values)}, not an object; expected {expected}", "not-an-object")
    return values


def json_type(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def short(text: str, length: int = 120) -> str:
    """The start of a text for a message."""
    return text if len(text) <= length else f"{text[:length]}..."
