"""Tokens of a user's text inside a template, whose special tokens are tokens; their names in the text are text."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from perceptune.data.records import short
from perceptune.errors import UserError
from perceptune.types import IN_TEXT


class Template(str):
    """Text of a template, in which the names of special tokens are tokens."""

    __slots__ = ()


Part = str | int  # a text, or a number of slots


class TextEncoding:
    """A tokenizer for an LM whose embedding has `rows` rows."""

    def __init__(self, tokenizer: Any, rows: int) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        self.special = _special_tokens(tokenizer)  # name -> id
        # Few distinct questions and answers repeat across a data set.
        self._encoded = lru_cache(2**14)(self._encode)

    def encode_plain(self, text: str) -> list[int]:
        """Return the tokens of a text, in which names of special tokens are text."""
        return list(self._encoded(text))

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Return the tokens of text, and `IN_TEXT` for each slot."""
        ids: list[int] = []
        texts: list[str] = []
        for part in [*parts, 0]:
            if isinstance(part, int):
                ids += self._encode_texts(texts)
                ids += [IN_TEXT] * part
                texts = []
            else:
                texts.append(part)
        return ids

    def _encode_texts(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of texts of the template and of users, which are encoded as one text.

        If a user's text contains the name of a special token, which is text there, parts between the template's own
        special tokens are encoded separately.
        """
        filled = "".join(texts)
        own = [text for text in texts if isinstance(text, Template)]
        names = [name for name in self.special if name in filled]
        if all(filled.count(name) == sum(text.count(name) for text in own) for name in names):
            return list(self._encoded(filled, special=bool(names))) if filled else []
        ids: list[int] = []
        joined = ""
        for text in texts:
            for piece in self.split(text) if isinstance(text, Template) else [text]:
                special = self.special.get(piece) if isinstance(text, Template) else None
                if special is None:
                    joined += piece
                else:
                    ids += [*self._encoded(joined), special]
                    joined = ""
        return [*ids, *self._encoded(joined)]

    def split(self, template: str) -> list[str]:
        """Split a template at its special tokens, which are parts of their own."""
        if not self.special:
            return [template]
        names = sorted(map(re.escape, self.special), key=len, reverse=True)
        return [part for part in re.split(f"({'|'.join(names)})", template) if part]

    def _encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Return the tokens of a text; `special`: parse the names of special tokens in it.

        Raises `UserError` for a token without an embedding in the LM.
        """
        ids = tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids)
        for token in ids:
            if token >= self.rows:
                raise UserError(f"{short(repr(text))} holds {self.no_row(token)}")
        return ids

    def require_row(self, token: int) -> None:
        if token >= self.rows:
            raise UserError(f"the tokenizer needs {self.no_row(token)}")

    def no_row(self, token: int) -> str:
        name = self.tokenizer.convert_ids_to_tokens(token)
        return (
            f"the token `{name}` ({token}), but the LM's embedding has {self.rows} rows for the tokenizer's "
            f"{len(self.tokenizer)} tokens: take a tokenizer without it, or an LM after `resize_token_embeddings`"
        )


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return name and id of every special token."""
    added = {str(token): int(id) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {name: id for name, id in (added | named).items() if name}


def required_token(token: int | None, name: str, why: str) -> int:
    """Return the id of a token. Raises `UserError` if the tokenizer has none."""
    if token is None:
        raise UserError(f"the LM's tokenizer has no {name}: {why}; name one in its tokenizer_config.json")
    return int(token)


def start_tokens(tokenizer: Any) -> list[int]:
    """Return the start token that the tokenizer puts before a text, if any."""
    ids = tokenizer("a").input_ids
    return [ids[0]] if len(ids) > 1 and ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
