"""Streaming of JSON: of a list of gigabytes, only one value at a time is in memory."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from perceptune.data.records import DECODER, MAX_LINE, short
from perceptune.errors import UserError

_PIECE = 2**20
_LONGEST_WORD = 16  # characters of a number or constant; an error this near the end may come from a cut word
_LONGEST_TAIL = 3  # characters after a number that may belong to it: `1e+` is read as 1


class JSONStream:
    """A JSON file that is read value by value. Errors name the file and the line, or the value."""

    def __init__(self, file: BinaryIO, address: str, start: bytes = b"", line: int = 1) -> None:
        """Continue after `start`, which has already been read from the file and begins in `line`."""
        self.address, self.line = address, line
        self._file, self._unread = file, start
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            rest = self._at
            while rest < len(self._text) and self._text[rest] in " \t\r\n":
                rest += 1
            self._advance(rest)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, characters: str) -> str:
        """Read the next character. Raises `UserError` if it is not one of `characters`."""
        found = self.peek()
        if not found or found not in characters:
            wanted = " or ".join(f"`{character}`" for character in characters)
            got = f"`{found}`" if found else "the end of the file"
            raise UserError(f"{self.address}, line {self.line}: invalid JSON: expected {wanted}, got {got}")
        self._advance(self._at + 1)
        return found

    def value(self, where: str) -> Any:
        """Read the next value completely; `where` is the prefix of errors."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_LINE:
                    raise too_long(where) from None
                if not self._ended and self._is_torn(error):
                    self._more()
                    continue
                raise UserError(f"{where}: invalid JSON: {self._reason(error)}") from None
            if not self._ended and len(self._text) - end <= _LONGEST_TAIL:
                self._more()
                continue
            self._advance(end)
            return value

    def items(self, what: str = "") -> Iterator[tuple[str, Any]]:
        """Yield the values of a list after its bracket, each with its location: the line, or `what` and its index."""
        index = 0
        while self.peek() != "]" or index:
            where = f"{self.address}, {what} {index}" if what else f"{self.address}, line {self.line}"
            yield where, self.value(where)
            if self.take(",]") == "]":
                return
            index += 1
        self.take("]")

    def keys(self) -> Iterator[str]:
        """Yield the keys of an object after its brace; the caller reads the value of each before the next."""
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                self.take('"')
            key = self.value(f"{self.address}, line {self.line}")
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def end(self) -> None:
        """Raise `UserError` if anything follows."""
        if found := self.peek():
            raise UserError(f"{self.address}, line {self.line}: invalid JSON: `{found}` follows its end")

    def _is_torn(self, error: ValueError | RecursionError) -> bool:
        """Return whether an error may be caused by unread text after the end of the buffer."""
        if not isinstance(error, json.JSONDecodeError):  # nested too deeply, or not a number
            return False
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _LONGEST_WORD

    def _reason(self, error: ValueError | RecursionError) -> str:
        if not isinstance(error, json.JSONDecodeError):
            return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        near = self._text[error.pos : error.pos + 40]
        return f"{error.msg} at {short(repr(near)) if near else 'the end of the file'}"

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """Read more, doubling the pending text; return whether there was more."""
        if self._ended:
            return False
        rest, self._at = self._text[self._at :], 0
        piece = self._unread or self._file.read(max(_PIECE, len(rest)))
        self._unread, self._ended = b"", not piece
        try:
            self._text = rest + self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            line = self.line + rest.count("\n") + error.object[: error.start].count(b"\n")
            raise UserError(f"{self.address}, line {line}: not UTF-8 ({error.reason})") from error
        return not self._ended


def too_long(where: str) -> UserError:
    """Return the error for a row that is too long to be read."""
    return UserError(f"{where}: longer than {MAX_LINE // 2**20} MiB, the most that one row may have")
