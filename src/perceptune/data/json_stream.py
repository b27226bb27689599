"""JSON read piece by piece: a list of gigabytes never lies in memory, only one of its values does."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from perceptune.data.records import DECODER, MAX_LINE, short
from perceptune.errors import UserError

_PIECE = 2**20
_LONGEST_WORD = 16  # of what JSON has beside strings: an error so near the end may be a word cut in two
_LONGEST_TAIL = 3  # of a number that is cut in two: `1e+` is read as 1


class JSONStream:
    """A file of JSON, taken value by value. Errors name the file and the line, or what was being read."""

    def __init__(self, file: BinaryIO, address: str, start: bytes = b"", line: int = 1) -> None:
        """`start` has already been read from the file, and begins in that line."""
        self.address, self.line = address, line
        self._file, self._unread = file, start
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """Return the next character that is no white space; empty at the end."""
        while True:
            rest = self._at
            while rest < len(self._text) and self._text[rest] in " \t\r\n":
                rest += 1
            self._advance(rest)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, characters: str) -> str:
        """Take the next character, which must be one of these."""
        found = self.peek()
        if not found or found not in characters:
            wanted = " or ".join(f"`{character}`" for character in characters)
            got = f"`{found}`" if found else "the end of the file"
            raise UserError(f"{self.address}, line {self.line}: invalid JSON: expected {wanted}, got {got}")
        self._advance(self._at + 1)
        return found

    def value(self, where: str) -> Any:
        """Take the next value, whole; `where` stands in front of errors."""
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
        """Take the values of a list whose bracket was taken, with where each stands: its line, or `what` and number."""
        index = 0
        while self.peek() != "]" or index:
            where = f"{self.address}, {what} {index}" if what else f"{self.address}, line {self.line}"
            yield where, self.value(where)
            if self.take(",]") == "]":
                return
            index += 1
        self.take("]")

    def keys(self) -> Iterator[str]:
        """Take the keys of an object whose brace was taken; the value of each is to be taken before the next."""
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
        """Whether an error may come of the text's end being still unread."""
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
        """Read on, twice as far as what is pending; whether there was more."""
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
    """Return the error for a row that is not read whole."""
    return UserError(f"{where}: longer than {MAX_LINE // 2**20} MiB, the most that one row may have")
