"""Conversion of samples to tokens and of tokens to answers: one code path for training, evaluation and inference."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from perceptune.config.schema import TextConfig
from perceptune.data.records import TEXT, short
from perceptune.errors import UserError
from perceptune.types import Features, Sample
from perceptune.utils.tensors import last_columns, pad_left

# Upper bound of tokens per plain character: byte-level tokenizers make at most one, others may add a few marks.
MOST_TOKENS = 2


@dataclass(frozen=True)
class Tokens:
    """A batch of texts, padded on the left."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T) 1 = token
    supervised: Tensor  # (B, T) bool: tokens that are to be predicted

    @property
    def n_predicted(self) -> int:
        """Number of predicted tokens; the first token has no context and is not predicted."""
        return int(self.supervised[:, 1:].sum())


class TextFormat:
    """Template and tokenizer of a run; the LM's embedding has `vocabulary` rows and `longest` positions."""

    def __init__(
        self, tokenizer: Any, config: TextConfig, *, vocabulary: int, pad_token: str | None = None,
        longest: int | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer = tokenizer
        self.config = config
        self._rows = vocabulary
        self.may_lack_rows = len(tokenizer) > vocabulary  # a text may contain a token without an embedding
        self.longest = min(config.max_tokens, config.max_tokens if longest is None else longest)
        # Few distinct questions and answers repeat across a data set.
        self._encoded = lru_cache(2**14)(self._encode)
        self.eos = _required(tokenizer.eos_token_id, "end token", "no answer could ever end")
        self.pad = self._pad_id(pad_token)
        self.bos = _prefix(tokenizer)
        for token in (self.eos, self.pad, *self.bos):
            self._require_row(token)
        self.separator = self._separator_ids(vocabulary)
        self._known_special = _special_tokens(tokenizer)
        self.special_tokens = self._special_tokens()
        if self.may_lack_rows:
            print(
                f"note: the tokenizer has {len(tokenizer)} tokens, the LM's embedding {vocabulary} rows: "
                "a text with one of the others is refused", file=sys.stderr,
            )  # fmt: skip

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Return the tokens up to the answer. Special tokens are tokens in the template, and text in a question."""
        self._require_question(sample)
        try:
            text = self._filled(self.config.template, "{prompt}", sample.prompt)
        except UserError as error:
            raise UserError(f"sample `{sample.id}`: {error}") from error
        ids = [*([] if text[:1] == self.bos else self.bos), *text, *self.separator]
        if not ids:
            raise UserError(f"sample `{sample.id}`: the prompt is empty and the LM's tokenizer has no start token")
        return self._checked(ids, sample)

    def count_prompt_tokens(self, sample: Sample) -> int:
        """Count the tokens of the question; media are not counted. Raises `UserError` for one that does not fit."""
        return len(self.prompt_ids(sample))

    def target_ids(self, target: str) -> list[int]:
        """Return the answer's tokens with the end token, encoded apart from the prompt, so that no token spans both."""
        return self._ended(self._filled(self.config.target, "{target}", target))

    def training_ids(self, sample: Sample, target: str) -> tuple[list[int], int]:
        """Return the tokens of prompt and answer, and how many of them, from the right, are supervised."""
        prompt, answer = self.prompt_ids(sample), self._answer_ids(sample, target)
        supervised = len(answer) if self.config.supervise == "answer" else len(prompt) + len(answer) - 1
        return self._checked(prompt + answer, sample), supervised

    def _answer_ids(self, sample: Sample, target: str) -> list[int]:
        try:
            return self.target_ids(target)
        except UserError as error:
            raise UserError(f"sample `{sample.id}`: {error}") from error

    def require_fit(self, sample: Sample, target: str) -> None:
        """Raise the errors of `training_ids`, without tokenising texts that are too short to exceed the limit."""
        self._require_question(sample)
        prompt = self.config.template.replace("{prompt}", sample.prompt)
        answer = self.config.target.replace("{target}", target)
        plain = not self.may_lack_rows and prompt.isascii() and answer.isascii() and not prompt.isspace() and prompt
        if not plain or MOST_TOKENS * (len(prompt) + len(answer)) + 8 > self.longest:
            self.training_ids(sample, target)

    def plain_ids(self, text: str) -> list[int]:
        """Return the tokens of a text alone, without template; special tokens in it are read as plain text."""
        return list(self._encoded(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return generated tokens as text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token(self, id: int) -> str:
        """Return one token as text; for the end token and others that `decode` leaves out, their names."""
        if id in self.tokenizer.all_special_ids:
            return str(self.tokenizer.convert_ids_to_tokens(id))
        return str(self.tokenizer.decode([id], clean_up_tokenization_spaces=False))

    def pad_left(self, rows: Sequence[Sequence[int]], supervised: Sequence[int] | None = None) -> Tokens:
        """Pad rows on the left to the longest; the last `supervised[i]` tokens of row i are predicted."""
        ids, mask = pad_left(rows, self.pad)
        return Tokens(ids, mask, last_columns(ids.shape[1], supervised or [0] * len(rows)))

    def as_text(self, prompt: str) -> str:
        """Return the template with a prompt filled in, without special tokens, for other tokenizers."""
        parts = self._parts(self.config.template)
        return "".join(part for part in parts if part not in self.special_tokens).replace("{prompt}", prompt)

    def _require_question(self, sample: Sample) -> None:
        if "{prompt}" in self.config.template and not TEXT.search(sample.prompt):
            raise UserError(f"sample `{sample.id}`: the question has no text: {sample.prompt!r}")

    def _filled(self, template: str, place: str, text: str) -> list[int]:
        """Return the tokens of a template with a user's text filled in.

        If the user's text contains the name of a special token, which is text there, parts between the template's own
        special tokens are encoded separately.
        """
        filled = template.replace(place, text)
        if self.special_tokens and all(filled.count(name) == template.count(name) for name in self._known_special):
            return list(self._encoded(filled, special=True))
        ids: list[int] = []
        for part in self._parts(template):
            special = self.special_tokens.get(part)
            ids += self._encoded(part.replace(place, text)) if special is None else (special,)
        return ids

    def _parts(self, template: str) -> list[str]:
        """Split a template at its special tokens, which are parts of their own."""
        if not self.special_tokens:
            return [template]
        names = sorted(map(re.escape, self.special_tokens), key=len, reverse=True)
        return [part for part in re.split(f"({'|'.join(names)})", template) if part]

    def _encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Return the tokens of a text; `special`: parse the names of special tokens in it.

        Raises `UserError` for a token without an embedding in the LM.
        """
        ids = tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids)
        for token in ids:
            if token >= self._rows:
                raise UserError(f"{short(repr(text))} holds {self._no_row(token)}")
        return ids

    def _ended(self, ids: list[int]) -> list[int]:
        """Append the end token, unless the answer template contains it."""
        return ids if ids[-1:] == [self.eos] else [*ids, self.eos]

    def _special_tokens(self) -> dict[str, int]:
        """Return the special tokens in the prompt and answer templates."""
        written = f"{self.config.template}\n{self.config.target}"
        found = {name: id for name, id in self._known_special.items() if name in written}
        for name, id in found.items():
            if id >= self._rows:
                raise UserError(f"text: `{name}` is {self._no_row(id)}")
        return found

    def _require_row(self, token: int) -> None:
        if token >= self._rows:
            raise UserError(f"the tokenizer needs {self._no_row(token)}")

    def _no_row(self, token: int) -> str:
        name = self.tokenizer.convert_ids_to_tokens(token)
        return (
            f"the token `{name}` ({token}), but the LM's embedding has {self._rows} rows for the tokenizer's "
            f"{len(self.tokenizer)} tokens: take a tokenizer without it, or an LM after `resize_token_embeddings`"
        )

    def _checked(self, ids: list[int], sample: Sample) -> list[int]:
        if len(ids) > self.longest:
            limit = "`text.max_tokens`" if self.longest == self.config.max_tokens else "the LM's positions allow"
            raise UserError(f"sample `{sample.id}`: {len(ids)} tokens, more than {limit} = {self.longest}")
        return ids

    def _pad_id(self, pad_token: str | None) -> int:
        if pad_token is not None:
            known = self.tokenizer.get_vocab()
            if pad_token not in known:
                raise UserError(f"lm.pad_token `{pad_token}` is not a token of the LM's vocabulary")
            return int(known[pad_token])
        # The attention mask hides padding, so any token will do; many LMs have no pad token of their own.
        pad = self.tokenizer.pad_token_id
        return self.eos if pad is None or int(pad) >= self._rows else int(pad)

    def _separator_ids(self, vocabulary: int) -> list[int]:
        if self.config.separator is None:
            return []
        self.tokenizer.add_tokens([self.config.separator], special_tokens=True)
        token = int(self.tokenizer.convert_tokens_to_ids(self.config.separator))
        if token >= vocabulary:
            raise UserError(
                f"text.separator `{self.config.separator}` needs a free row in the LM's embedding, which has "
                f"{vocabulary} rows; put the separator into `text.template` instead"
            )
        return [token]


def first_target(sample: Sample) -> str:
    """Return the default training target of a sample. Raises `UserError` if it has none."""
    if not sample.targets:
        raise UserError(f"sample `{sample.id}` has no target to learn from")
    return sample.targets[0]


def _required(token: int | None, name: str, why: str) -> int:
    if token is None:
        raise UserError(f"the LM's tokenizer has no {name}: {why}; name one in its tokenizer_config.json")
    return int(token)


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return name and id of every special token."""
    added = {str(token): int(id) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {name: id for name, id in (added | named).items() if name}


def _prefix(tokenizer: Any) -> list[int]:
    """Return the start token that the tokenizer puts before a text, if any."""
    ids = tokenizer("a").input_ids
    return [ids[0]] if len(ids) > 1 and ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []


@dataclass(frozen=True)
class Batch:
    """Texts with the encoder features of their media."""

    tokens: Tokens
    features: Mapping[str, Features]

    @property
    def n_tokens(self) -> int:
        """Number of supervised tokens, by which a loss sum is divided."""
        return self.tokens.n_predicted

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return len(self.tokens.input_ids)


class FrozenPart(NamedTuple):
    """A frozen part as `perceptune show` lists it."""

    what: str
    module: nn.Module
