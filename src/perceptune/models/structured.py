"""Answers in a given form: JSON by a schema, with the package xgrammar."""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.models.text_format import TextFormat

_KEPT = 64  # compiled schemas
_ANY_JSON: dict[str, Any] = {"type": "object"}


class JsonForms:
    """Compiler of JSON schemas for a run's tokenizer. Raises `UserError` if xgrammar is not installed."""

    def __init__(self, text: TextFormat) -> None:
        if find_spec("xgrammar") is None:
            raise UserError("answers by a JSON schema need xgrammar: run `pip install 'perceptune[structured]'`")
        import xgrammar

        self._rows = text.encoding.rows
        info = xgrammar.TokenizerInfo.from_huggingface(text.tokenizer, vocab_size=self._rows, stop_token_ids=[text.eos])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self._compiled = lru_cache(_KEPT)(self._compile)

    def constraint(self, schema: Mapping[str, Any] | None) -> "JsonConstraint":
        """Return what holds one answer to a schema, or to any JSON object. Raises `UserError` for an invalid schema."""
        return JsonConstraint(self._compiled(json.dumps(_ANY_JSON if schema is None else schema)), self._rows)

    def _compile(self, schema: str) -> Any:
        try:
            return self._compiler.compile_json_schema(schema, any_whitespace=False)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the schema cannot be used: {str(error).strip().splitlines()[-1]}") from error


class JsonConstraint:
    """The tokens that may follow in one answer."""

    def __init__(self, compiled: Any, rows: int) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bits = xgrammar.allocate_token_bitmask(1, rows)

    def mask(self, logits: Tensor) -> Tensor:
        """Return logits (vocab,) with -inf for tokens that the form does not allow next.

        Raises `UserError` if there is none, as with a tokenizer that has no token for a character of JSON.
        """
        self._matcher.fill_next_token_bitmask(self._bits)
        words = self._bits[0].to(torch.int64)
        allowed = ((words[:, None] >> torch.arange(32)) & 1).flatten()[: len(logits)].bool().to(logits.device)
        if not allowed.any():
            raise UserError("the model's tokenizer has no token that the schema allows here")
        return logits.masked_fill(~allowed, -torch.inf)

    def accept(self, token: int) -> None:
        """Go on after a token that was allowed."""
        self._matcher.accept_token(token)

    def reset(self) -> None:
        """Go back to the start of the answer."""
        self._matcher.reset()
