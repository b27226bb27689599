"""Rows of users' files, one JSON object each: checked key by key, with errors that locate the mistake."""

import ast
import codecs
import difflib
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from perceptune.errors import UserError

MAX_LINE = 2**24  # bytes of a row; longer text is not a row and is never read into memory completely


TEXT = re.compile(r"[^\W_]")  # a letter or a digit


class RowError(UserError):
    """An invalid row; `kind` groups similar mistakes of many rows."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class _NotANumberError(ValueError):
    """Raised for `NaN` or `Infinity`, which Python's own parser accepts and other programs reject."""


def _no_number(constant: str) -> object:
    raise _NotANumberError(f"{constant} is no number in JSON; write null or leave the key out")


DECODER = json.JSONDecoder(parse_constant=_no_number)  # rejects NaN and infinities, which Python accepts


class Record(NamedTuple):
    """One object; its errors name its location and the key."""

    where: str
    values: dict[str, Any]
    keys: tuple[str, ...]  # keys with a meaning; all others are the sample's meta

    def error(self, message: str, kind: str = "wrong-value") -> RowError:
        """Return an error with the row's location as the prefix."""
        return RowError(f"{self.where}: {message}", kind)

    def lacks(self, wanted: Sequence[str]) -> RowError:
        """Return the error for a row with none of the `wanted` keys, one of which is often misspelt."""
        names = " or ".join(f"`{key}`" for key in wanted)
        for key in self.values:
            if key not in self.keys and (close := difflib.get_close_matches(key, wanted, n=1, cutoff=0.6)):
                return self.error(f"no key {names}, but `{key}`; did you mean `{close[0]}`?", "missing-key")
        found = ", ".join(f"`{key}`" for key in self.values) or "none"
        return self.error(f"no key {names}; the keys are {found}", "missing-key")

    def text(self, key: str) -> str:
        """Return the string at `key`."""
        return self.check_text(key, self.values[key])

    def check_text(self, key: str, value: object) -> str:
        """Return `value` if it is a string that can be encoded. Raises `RowError` otherwise."""
        if not isinstance(value, str):
            raise self.error(f"`{key}` is {json_type(value)}, not a string", "wrong-type")
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which tokenizers reject
            raise self.error(f"`{key}` holds an unpaired surrogate: {short(ascii(value))}", "bad-text") from error
        return value

    def listed(self, key: str, *, parse_text: bool = False) -> list[tuple[str, Any]]:
        """Return the values at `key`, one or those of a list, each with its place; null stands for none.

        With `parse_text` also those of a list written as text.
        """
        value = self.values.get(key)
        if parse_text and isinstance(value, str) and (found := self.items(key, value)) != [value]:
            value = found
        if not isinstance(value, list):
            return [] if value is None else [(key, value)]
        if len(value) == 1:
            return [] if value[0] is None else [(key, value[0])]
        return [(f"{key}[{index}]", item) for index, item in enumerate(value) if item is not None]

    def prompt(self, key: str, *, allow_empty: bool) -> str:
        """Return the question. Raises `RowError` if it has no text, unless it may be empty."""
        if self.values.get(key) is None and allow_empty:
            return ""
        if key not in self.values:
            raise self.lacks([key])
        prompt = self.text(key)
        if not allow_empty and not TEXT.search(prompt):
            permitted = "(`allow_empty_prompt: true` permits this)"
            raise self.error(f"`{key}` holds no text: {short(repr(prompt))} {permitted}", "empty-prompt")
        return prompt

    def targets(
        self, keys: Sequence[str], clean: Callable[[str], str], *, needed: bool, parse_lists: bool = True,
        numbers: bool = False,
    ) -> tuple[str, ...]:  # fmt: skip
        """Return the targets at the first of `keys` that has any; empty only if they are not needed.

        With `parse_lists` a list written as text, such as `['a cup', 'cup']`, is converted to its items,
        with `numbers` a number to its text.
        """
        key = next((key for key in keys if self.values.get(key) is not None), None)
        if key is None:
            if needed:
                null = [key for key in keys if key in self.values]
                raise self.error(f"`{null[0]}` is null", "no-targets") if null else self.lacks(keys)
            return ()
        value = self.values[key]
        if isinstance(value, list):
            given = [(f"{key}[{index}]", target) for index, target in enumerate(value)]
            texts = [self._target(place, target, "a string", numbers=numbers) for place, target in given]
        else:
            texts = [self._target(key, value, "a string or a list of strings", numbers=numbers)]
        targets = [item for text in texts for item in self.items(key, text)] if parse_lists else texts
        if not targets:
            raise self.error(f"`{key}` is empty", "no-targets")
        for target in targets:
            if not clean(target).strip("."):  # it would equal the empty answer
                raise self.error(f"`{key}` holds no text: {short(repr(target))}", "empty-target")
        return tuple(targets)

    def gather(self, keys: Sequence[str]) -> Any:
        """Return the value of one key as it is, or the values of several as one list. Raises `RowError` without any."""
        if not self.values.keys() & set(keys):
            raise self.lacks(keys)
        given = [self.values[key] for key in keys if self.values.get(key) is not None]
        if len(keys) == 1:
            return given[0] if given else None
        return [item for value in given for item in (value if isinstance(value, list) else [value])]

    def _target(self, key: str, value: object, expected: str, *, numbers: bool) -> str:
        """Return the text of a target; that of a number if these are accepted."""
        if numbers and not isinstance(value, str):
            if isinstance(value, bool):
                advice = 'write the answer as text, such as "yes" or "no"'
                raise self.error(f"`{key}` is a boolean, not {expected}; {advice}", "wrong-type")
            if isinstance(value, int | float) and math.isfinite(value):
                return json.dumps(value)
        if not isinstance(value, str):
            raise self.error(f"`{key}` is {json_type(value)}, not {expected}", "wrong-type")
        return self.check_text(key, value)

    def items(self, key: str, text: str) -> list[str]:
        """Return the items of a list written as text, else the text itself."""
        try:
            found = listed(text)
        except ValueError as error:
            raise self.error(f"`{key}` is {error}", "wrong-type") from error
        return [text] if found is None else found

    def meta(self) -> dict[str, Any]:
        """Return all other keys. Raises `RowError` if `answer_type` among them is not a string."""
        meta = {key: value for key, value in self.values.items() if key not in self.keys}
        if meta.get("answer_type") is None:
            meta.pop("answer_type", None)
        else:
            self.text("answer_type")
        return meta


def utf8(text: bytes, where: str, encoding: str = "utf-8-sig") -> str:
    """Return the text of bytes. Raises `UserError` if they are not UTF-8."""
    try:
        return text.decode(encoding)
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})", "not-utf8") from error


def parse(text: bytes, where: str, expected: str, encoding: str = "utf-8") -> dict[str, Any] | None:
    """Parse the JSON object in `text`; None for white space. `expected` describes a valid text in errors."""
    if len(text) > MAX_LINE:
        raise RowError(f"{where}: longer than {MAX_LINE // 2**20} MiB; expected {expected}", "long-line")
    line = utf8(text, where, encoding).strip()
    try:
        values, end = DECODER.raw_decode(line) if line else (None, 0)
        if end < len(line):
            DECODER.decode(line)  # raises an error about the text after the first value
    except _NotANumberError as error:
        raise RowError(f"{where}: invalid JSON: {error}", "nan") from error
    except (ValueError, RecursionError) as error:
        reason = f"{where}: invalid JSON: {error}; expected {expected}{_hint(line)}"
        raise RowError(reason, "invalid-json") from error
    if not line:
        return None
    if not isinstance(values, dict):
        raise RowError(f"{where}: {json_type(values)}, not an object; expected {expected}", "not-an-object")
    return values


def _hint(line: str) -> str:
    """Return a hint for common mistakes in JSON objects."""
    if line.endswith("},"):
        return "; no comma stands behind it"
    return "; JSON has double quotes around keys and texts" if line.startswith("{'") else ""


def wide_encoding(start: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if a file that begins so is in it, else None; spreadsheets call it "Unicode text"."""
    for mark, encoding in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
                           (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):  # fmt: skip
        if start.startswith(mark):
            return encoding
    # Without a byte order mark: in UTF-16 one byte of each of the first two ASCII characters is 0.
    return {b"\1\0\1\0": "utf-16-le", b"\0\1\0\1": "utf-16-be"}.get(bytes(min(byte, 1) for byte in start[:4]))


def json_type(value: object) -> str:
    """Return JSON's name for the type of a value, with its article."""
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def short(text: str, length: int = 120) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= length else f"{text[:length]}..."


def first_line(text: str) -> str:
    """Return the first line that contains text."""
    return next(iter(text.strip().splitlines()), "")


def listed(text: str) -> list[str] | None:
    """Parse a list of strings written as text by Python, JSON or numpy; return None for any other text.

    A tuple or a set needs a comma, because quoted words are also put in brackets. Raises `ValueError` for a list that
    contains strings and other values, or cannot be parsed.
    """
    opened = _OPEN.match(text)
    if opened is None:
        return None
    found, commas, at = [], 0, opened.end()
    while literal := _LITERAL.match(text, at):
        between = _BETWEEN.match(text, literal.end())
        assert between is not None  # the pattern matches the empty string
        found.append(_unquoted(literal[0]))
        commas, at = commas + len(between[1]), between.end()
    closed = _CLOSE[opened[1]].fullmatch(text, at)
    if opened[1] != "[":
        return found if closed and found and commas else None
    broken = text[at : at + 1] in ("", "'", '"') if found else _NESTED.match(text)  # truncated or not only strings
    if closed is None and (broken or (found and text.rstrip().endswith(("]", "])")))):
        raise ValueError(f"a list written as text that holds more than strings: {short(text.strip())}")
    return found if closed else None


_OPEN = re.compile(r"\s*(?:(?:np\.)?array\()?([\[({])\s*")
_CLOSE = {"[": re.compile(r"\](?:,\s*dtype=[^()]*)?\)?\s*"), "(": re.compile(r"\)\s*"), "{": re.compile(r"\}\s*")}
_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_BETWEEN = re.compile(r"\s*(,?)\s*")  # numpy writes no commas
_NESTED = re.compile(r"""\s*\[\s*[\[{]\s*['"]""")


def _unquoted(literal: str) -> str:
    """Return the text of a string literal."""
    if "\\" not in literal:
        return literal[1:-1]
    try:
        return str(json.loads(literal) if literal[0] == '"' else ast.literal_eval(literal))
    except (ValueError, SyntaxError):
        return literal[1:-1]
