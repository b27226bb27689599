"""Conversion of samples to tokens and of tokens to answers: one code path for training, evaluation and inference."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from perceptune.config.schema import TextConfig
from perceptune.data.records import TEXT
from perceptune.errors import UserError
from perceptune.models.chat_template import ChatTemplate
from perceptune.models.text_encoding import Part, Template, TextEncoding, required_token, start_tokens
from perceptune.models.text_rows import Place, TextRow, Tokens, messages_of, pad_rows
from perceptune.types import IN_TEXT, Features, Message, Sample

# Upper bound of tokens per plain character: byte-level tokenizers make at most one, others may add a few marks.
MOST_TOKENS = 2


class TextFormat:
    """Template and tokenizer of a run; the LM's embedding has `vocabulary` rows and `longest` positions.

    `slots_in_text` maps modalities whose slots stand in the text to the number of slots of a medium.
    """

    def __init__(
        self, tokenizer: Any, config: TextConfig, *, vocabulary: int, pad_token: str | None = None,
        longest: int | None = None, slots_in_text: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer = tokenizer
        self.config = config
        self.chat = ChatTemplate(tokenizer) if config.is_chat else None
        self.slots_in_text = dict(slots_in_text or {})
        self.may_lack_rows = len(tokenizer) > vocabulary  # a text may contain a token without an embedding
        self._positions = longest
        self.longest = min(config.max_tokens, config.max_tokens if longest is None else longest)
        self.eos = required_token(tokenizer.eos_token_id, "end token", "no answer could ever end")
        self.bos = start_tokens(tokenizer)
        self.separator = self._separator_ids(vocabulary)
        self.encoding = TextEncoding(tokenizer, vocabulary)
        self.pad = self._pad_id(pad_token)
        for token in (self.eos, self.pad, *self.bos):
            self.encoding.require_row(token)
        self.special_tokens = self._special_tokens()
        if self.chat is not None:
            self.eos = self._end_of_turn(self.chat)
            if config.system is not None and not self.chat.takes_system:
                raise UserError("text.system: the LM's chat template has no place for a system message: leave it out")
        if self.may_lack_rows:
            print(
                f"note: the tokenizer has {len(tokenizer)} tokens, the LM's embedding {vocabulary} rows: "
                "a text with one of the others is refused", file=sys.stderr,
            )  # fmt: skip

    @property
    def takes_history(self) -> bool:
        """Whether a sample may have earlier turns."""
        return self.chat is not None

    @property
    def takes_system(self) -> bool:
        """Whether a sample may have a system message."""
        return self.chat is not None and self.chat.takes_system

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Return the tokens up to the answer. Special tokens are tokens in the template, and text in a question."""
        return self.prompt_row(sample).ids

    def prompt_row(self, sample: Sample) -> TextRow:
        """Return the tokens up to the answer, `IN_TEXT` for slots among them, with the turns of the media."""
        self._require_question(sample)
        try:
            row = self._plain_row(sample) if self.chat is None else self._chat_row(sample, self.chat)
        except UserError as error:
            where = f"sample `{sample.id}`: "
            raise UserError(where + str(error).removeprefix(where)) from error
        if not row.ids:
            raise UserError(f"sample `{sample.id}`: the prompt is empty and the LM's tokenizer has no start token")
        self._checked(row.ids, sample)
        return row

    def _plain_row(self, sample: Sample) -> TextRow:
        if sample.history:
            raise UserError("it has earlier turns or a system message, which need `text.template: chat`")
        template = self.config.template
        if not self.slots_in_text or not sample.media:
            text, media = self._filled(template, "{prompt}", sample.prompt), list[Place]()
        else:
            [message] = messages_of(sample)
            marked = self._parts_around(message, media := [])
            # Media without marks stand before the whole text, as in front of it they would.
            parts = [Template(piece) for piece in template.split("{prompt}")]
            inside = bool(sample.marks) and len(parts) > 1
            whole = (
                [*parts[:1], *marked, *parts[1:]] if inside else [*marked[:-1], *parts[:1], *marked[-1:], *parts[1:]]
            )
            text = self.encoding.encode_parts(whole)
        return TextRow([*([] if text[:1] == self.bos else self.bos), *text, *self.separator], in_text=media)

    def _chat_row(self, sample: Sample, chat: ChatTemplate) -> TextRow:
        messages = messages_of(sample)
        if self.config.system is not None and messages[0].role != "system":
            messages.insert(0, Message("system", self.config.system))
        ids, parts, spans, start = list[int](), list[Part](), list[tuple[int, int]](), 0
        media: list[Place] = []
        turns: dict[str, list[int]] = {}
        for part in chat.parts_of(tuple(message.role for message in messages)):
            message = None if isinstance(part, str) else messages[part]
            if message is None:
                parts.append(Template(str(part)))
            elif message.role != "assistant":
                parts += self._parts_around(message, media, strip=chat.strips)
                for mark in message.marks:
                    turns.setdefault(mark.modality, []).append(start)
            else:
                ids += self.encoding.encode_parts(parts)
                answer = self._filled(self._target, "{target}", message.text)
                if message.is_target:
                    spans.append((len(ids), len(ids) + len(answer)))
                ids += answer
                parts, start = [], len(ids)
        ids += self.encoding.encode_parts(parts)
        # The end token behind an earlier answer is the template's own.
        spans = [(first, end + (ids[end] == self.eos)) for first, end in spans]
        late = {} if self.slots_in_text or not any(map(any, turns.values())) else turns
        return TextRow(ids, spans, late, media)

    def _parts_around(self, message: Message, media: list[Place], *, strip: bool = False) -> list[Part]:
        """Return a message's text with the slots at its marks, which are added to `media`."""
        text = message.text
        begin = len(text) - len(text.lstrip()) if strip else 0
        end = len(text.rstrip()) if strip else len(text)
        parts: list[Part] = []
        for mark in message.marks if self.slots_in_text else ():
            at = min(max(mark.at, begin), end)
            number = sum(modality == mark.modality for modality, _ in media)
            parts += [text[begin:at], self.slots_in_text[mark.modality]]
            media.append((mark.modality, number))
            begin = at
        return [*parts, text[begin:end]]

    def count_prompt_tokens(self, sample: Sample) -> int:
        """Count the tokens of the question, and slots in it. Raises `UserError` for one that does not fit."""
        return len(self.prompt_ids(sample))

    def target_ids(self, target: str) -> list[int]:
        """Return the answer's tokens with the end token, encoded apart from the prompt, so that no token spans both."""
        return self._ended(self._filled(self._target, "{target}", target))

    @property
    def _target(self) -> str:
        return self.config.target if self.chat is None else self.config.target.lstrip()

    def training_ids(self, sample: Sample, target: str) -> tuple[list[int], int]:
        """Return the tokens of prompt and answer, and how many of them, from the right, are supervised."""
        row = self.training_row(sample, target)
        return row.ids, len(row.ids) - row.supervised[0][0]

    def training_row(self, sample: Sample, target: str) -> TextRow:
        """Return the tokens of prompt and answer; earlier answers that are targets are supervised, too."""
        row, answer = self.prompt_row(sample), self._answer_ids(sample, target)
        ids = self._checked([*row.ids, *answer], sample)
        if self.config.supervise == "answer":
            return replace(row, ids=ids, supervised=[*row.supervised, (len(row.ids), len(ids))])
        if IN_TEXT not in ids:
            return replace(row, ids=ids, supervised=[(1, len(ids))])
        texts = [place for place in range(1, len(ids)) if ids[place] != IN_TEXT]
        return replace(row, ids=ids, supervised=[(place, place + 1) for place in texts])

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
        is_single = self.chat is None and not self.slots_in_text and not sample.history
        is_ascii = not self.may_lack_rows and prompt.isascii() and answer.isascii() and prompt.strip()
        if not (is_single and is_ascii) or MOST_TOKENS * (len(prompt) + len(answer)) + 8 > self.longest:
            self.training_ids(sample, target)

    def plain_ids(self, text: str) -> list[int]:
        """Return the tokens of a text alone, without template; special tokens in it are read as plain text."""
        return self.encoding.encode_plain(text)

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
        counts = supervised or [0] * len(rows)
        return self.pad_rows([TextRow([*ids], [(len(ids) - n, len(ids))]) for ids, n in zip(rows, counts, strict=True)])

    def pad_rows(self, rows: Sequence[TextRow]) -> Tokens:
        """Pad rows on the left to the longest."""
        return pad_rows(rows, self.pad)

    def as_text(self, prompt: str) -> str:
        """Return the template with a prompt filled in, without special tokens, for other tokenizers."""
        parts = self.encoding.split(self.config.template)
        return "".join(part for part in parts if part not in self.special_tokens).replace("{prompt}", prompt)

    def _require_question(self, sample: Sample) -> None:
        if "{prompt}" in self.config.template and not TEXT.search(sample.prompt):
            raise UserError(f"sample `{sample.id}`: the question has no text: {sample.prompt!r}")

    def _filled(self, template: str, place: str, text: str) -> list[int]:
        """Return the tokens of a template with a user's text filled in."""
        first, *others = template.split(place)
        return self.encoding.encode_parts(
            [Template(first), *(part for other in others for part in (text, Template(other)))]
        )

    def _ended(self, ids: list[int]) -> list[int]:
        """Append the end token, unless the answer template contains it."""
        return ids if ids[-1:] == [self.eos] else [*ids, self.eos]

    def _special_tokens(self) -> dict[str, int]:
        """Return the special tokens in the prompt and answer templates."""
        written = f"{self.config.template}\n{self.config.target}"
        if self.chat is not None:
            written += "".join(
                part for part in self.chat.parts_of(("user", "assistant", "user")) if isinstance(part, str)
            )
        found = {name: id for name, id in self.encoding.special.items() if name in written}
        for name, id in found.items():
            if id >= self.encoding.rows:
                raise UserError(f"text: `{name}` is {self.encoding.no_row(id)}")
        return found

    def _checked(self, ids: list[int], sample: Sample) -> list[int]:
        slots = ids.count(IN_TEXT) if self.slots_in_text else 0
        for count, limit, name in (
            (len(ids) - slots, self.config.max_tokens, "`text.max_tokens`"),
            (len(ids), self._positions, "the LM's positions allow"),
        ):
            if limit is not None and count > limit:
                of_media = f", {slots} of them of media," if slots and count == len(ids) else ","
                raise UserError(f"sample `{sample.id}`: {count} tokens{of_media} more than {name} = {limit}")
        return ids

    def _end_of_turn(self, chat: ChatTemplate) -> int:
        """Return the special token that ends an answer in the chat template, else the tokenizer's own end token."""
        after = self.encoding.encode_parts([Template(chat.after_answer())])
        return after[0] if after and after[0] in self.encoding.special.values() else self.eos

    def _pad_id(self, pad_token: str | None) -> int:
        if pad_token is not None:
            known = self.tokenizer.get_vocab()
            if pad_token not in known:
                raise UserError(f"lm.pad_token `{pad_token}` is not a token of the LM's vocabulary")
            return int(known[pad_token])
        # The attention mask hides padding, so any token will do; many LMs have no pad token of their own.
        pad = self.tokenizer.pad_token_id
        return self.eos if pad is None or int(pad) >= self.encoding.rows else int(pad)

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


@dataclass(frozen=True)
class Batch:
    """Texts with the encoder features of their media."""

    tokens: Tokens
    features: Mapping[str, Features]
    samples: tuple[Sample, ...] = ()  # of a training batch, with a seed each that depends on the sample and the epoch
    seeds: tuple[int, ...] = ()
    # (N,) of the supervised tokens' losses, row by row, for texts that are seen once: no states of them are kept.
    weights: Tensor | None = None

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
