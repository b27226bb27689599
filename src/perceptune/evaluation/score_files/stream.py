"""JSON read piece by piece: a list of gigabytes never lies in memory, only one of its values does."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from perceptune.data.records import short
from perceptune.errors import UserError

LARGEST = 16 * 2**20  # bytes of a line, characters of a value in a list
_PIECE = 2**20
_LONGEST_WORD = 16  # of what JSON has beside strings: an error so near the end may be a word cut in two
_DECODE = json.JSONDecoder().raw_decode


class Stream:
    """A file of JSON, taken value by value. Errors name the file and what was being read."""

    def __init__(self, file: BinaryIO, address: str, start: bytes = b"") -> None:
        """`start` has already been read from the file."""
        self.address = address
        self._file, self._unread = file, start
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes = 0  # that were decoded
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, characters: str) -> str:
        """The next character, which is one of these."""
        found = self.peek()
        if not found or found not in characters:
            wanted = " or ".join(f"`{character}`" for character in characters)
            raise UserError(f"{self.address}: invalid JSON: expected {wanted}, got {self._near()}")
        self._at += 1
        return found

    def value(self, what: str) -> Any:
        """The next value, whole; `what` it is stands in errors."""
        self.peek()
        while True:
            try:
                value, end = _DECODE(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                pending = len(self._text) - self._at
                if pending > LARGEST:
                    raise too_long(f"{self.address}, {what}") from None
                if self._torn(error) and self._more():
                    continue
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
                raise UserError(f"{self.address}, {what}: invalid JSON: {reason} at {self._near()}") from None
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def items(self, what: str) -> Iterator[tuple[int, Any]]:
        """The values of a list whose bracket was taken, with their numbers."""
        if self.peek() == "]":
            self._at += 1
            return
        index = 0
        while True:
            yield index, self.value(f"{what} {index}")
            if self.take(",]") == "]":
                return
            index += 1

    def keys(self) -> Iterator[str]:
        """The keys of an object whose brace was taken; the value of each is to be taken before the next."""
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            if self.peek() != '"':
                self.take('"')
            key = self.value("a key")
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def end(self) -> None:
        """Nothing follows."""
        if self.peek():
            raise UserError(f"{self.address}: invalid JSON: something follows its end: {self._near()}")

    def _torn(self, error: json.JSONDecodeError | RecursionError) -> bool:
        """Whether an error may come of the text's end being still unread."""
        if isinstance(error, RecursionError):
            return False
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _LONGEST_WORD

    def _more(self) -> bool:
        """Reads on, twice as far as what is pending; whether there was more."""
        if self._ended:
            return False
        self._text, self._at = self._text[self._at :], 0
        piece = self._unread or self._file.read(max(_PIECE, len(self._text)))
        self._unread = b""
        self._ended = not piece
        try:
            self._text += self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            at = self._bytes + error.start
            raise UserError(f"{self.address}: not UTF-8 ({error.reason} near byte {at})") from error
        self._bytes += len(piece)
        return not self._ended

    def _near(self) -> str:
        return (
            short(repr(self._text[self._at : self._at + 40])) if self._at < len(self._text) else "the end of the file"
        )


def too_long(where: str) -> UserError:
    """The error for a row that is not read whole."""
    return UserError(f"{where}: longer than {LARGEST // 2**20} MiB, the most that one row may have")
