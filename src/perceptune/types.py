"""The data that flows through the library: a sample on disk, encoded features, slots in the LM."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Member:
    """A file inside an archive, read at its offset."""

    shard: str  # the archive: an absolute path or an address such as s3://bucket/0001.tar
    offset: int  # of its first byte in the archive
    size: int  # in bytes
    name: str
    version: str  # of the archive; reading fails if the archive was changed since

    def __str__(self) -> str:
        return f"{self.shard}#{self.name}"


Medium = Path | bytes | Member


Media = Medium | tuple[Medium, ...]


@dataclass(frozen=True)
class Mark:
    """The place of a medium in a text."""

    at: int  # index of the character before which it stands; the text's length = behind the text
    modality: str


@dataclass(frozen=True)
class Message:
    """An earlier turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    marks: tuple[Mark, ...] = ()  # one for each medium of this turn, in order
    is_target: bool = False  # an answer that is trained on, beside the sample's own target


@dataclass(frozen=True)
class Sample:
    """One row of a task. Its media stay on disk and are decoded when they are needed.

    Several media of a modality are a tuple: those of `history` first, in the order of its marks, then the prompt's.
    """

    id: str
    media: Mapping[str, Media]  # modality -> location of its bytes; empty for a text-only sample
    prompt: str
    targets: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()  # of the prompt's media; () = they stand before the prompt
    history: tuple[Message, ...] = ()  # earlier turns; the prompt follows an answer, or a system message alone

    def list_media(self, modality: str) -> tuple[Medium, ...]:
        """Return the media of a modality in their order; empty if there are none."""
        given = self.media.get(modality, ())
        return given if isinstance(given, tuple) else (given,)

    def iter_media(self) -> Iterator[tuple[str, Medium]]:
        """Yield modality and location of each medium."""
        return ((modality, medium) for modality in self.media for medium in self.list_media(modality))

    def question(self) -> tuple[object, ...]:
        """Return media, prompt and earlier turns: samples with equal questions differ in id, targets or `meta` only."""
        return tuple(self.iter_media()), self.prompt, self.marks, self.history

    def map_media(self, change: Callable[[str, Medium], Any]) -> dict[str, Any]:
        """Return `media` with each medium replaced by `change(modality, medium)`; several stay a tuple."""
        return {
            name: tuple(change(name, one) for one in given) if isinstance(given, tuple) else change(name, given)
            for name, given in self.media.items()
        }


@dataclass(frozen=True)
class Draws:
    """Seeds of what is drawn at random for a training batch; the same whenever a step is run again."""

    rows: tuple[int, ...]  # one for each row, which depends on the recipe's seed, the sample and the epoch
    step: int  # for all rows of a step alike
    order: int = 0  # of the medium among those of its row


@dataclass(frozen=True)
class Features:
    """The output of a frozen encoder for a batch, for one modality."""

    # (B, n_levels, T, dim) float32; rows without this modality hold zeros. Of batches with several media in a row:
    # (B, M, n_levels, T, dim).
    values: Tensor
    # (B,) or (B, M) bool: which media of this modality there are. Always on the CPU, because each use reads the values.
    present: Tensor
    draws: Draws | None = None  # of a training batch; None = nothing is drawn

    def of_rows(self, rows: slice) -> Features:
        """Return the features of some rows of the batch."""
        return replace(self, values=self.values[rows], present=self.present[rows])

    def by_order(self) -> list[Features]:
        """Return the features (B, n_levels, T, dim) of the first medium of each row, of the second, and so on."""
        if self.present.dim() == 1:
            return [self]
        return [
            Features(self.values[:, m], self.present[:, m], self.draws and replace(self.draws, order=m))
            for m in range(self.present.shape[1])
        ]


IN_TEXT = -1  # token id of a column of the text that holds a slot

# The text's states (B, T, d) at the input of a layer, keys and values (B, heads, N, head size) of media, and which of
# them each column sees (B, 1, T or 1, N) -> what is added to the states.
CrossAttention = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class CrossAttended:
    """Keys and values of a medium that the columns of the text attend to at the input of some layers."""

    kv: Sequence[tuple[Tensor, Tensor]]  # (B, heads, N, head size) each
    layers: Mapping[int, tuple[int, CrossAttention]]  # layer -> the place in `kv` of what it attends to, and how

    def of_rows(self, index: Tensor) -> CrossAttended:
        """Return those of the rows that `index` (N,) names."""
        pairs = [(keys[index.to(keys.device)], values[index.to(values.device)]) for keys, values in self.kv]
        return replace(self, kv=pairs)

    @property
    def layout(self) -> Hashable:
        """What two have in common whose rows can be put into one batch."""
        return tuple(self.layers.items()), tuple(keys.shape[1:] for keys, _ in self.kv)


@dataclass(frozen=True)
class Slots:
    """Columns in front of the text, and the hidden states that are injected into them, by layer.

    In every layer below `entry` the columns are hidden from the text. From `entry` on they are visible in the rows
    named by `present`. In each layer of `states` the columns' hidden state is overwritten before the layer runs.

    With `in_text` they are columns of the text instead, with positions of their own: those whose token id is
    `IN_TEXT`, from left to right; the states (B, K, hidden_size) of layer 0 enter there.

    With `cross` there are no columns and no states: the text attends to the medium from layer `entry` on.
    """

    name: str
    entry: int  # first layer (0-based) in which the columns are visible
    states: Mapping[int, Tensor]  # layer -> (B, n, hidden_size), or (1, n, ...) if the same for every row; float32
    present: Tensor  # (B,) bool; best on the CPU, as `Features.present` is
    sees_text: bool = False  # the official eP-ALM mask: the columns see the whole text, future included
    order: int = 0  # of its medium among those of the modality
    in_text: bool = False
    # (B,) index of the first column of the padded text that the slots are visible to; None = all. The text before
    # belongs to earlier turns of the conversation.
    visible_from: Tensor | None = None
    cross: CrossAttended | None = None

    @property
    def in_front(self) -> bool:
        """Whether there are columns in front of the text."""
        return not self.in_text and self.cross is None

    @property
    def width(self) -> int:
        """Number of columns in front of the text."""
        return int(self.states[self.entry].shape[1]) if self.in_front else 0

    def of_rows(self, index: Tensor) -> Slots:
        """Return the slots of the rows of a batch that `index` (N,) names; a row may be named more than once."""
        states = {
            layer: states if states.shape[0] == 1 else states[index.to(states.device)]
            for layer, states in self.states.items()
        }
        start = self.visible_from
        if start is not None:
            start = start[index.to(start.device)]
        return replace(
            self, states=states, present=self.present[index.to(self.present.device)], visible_from=start,
            cross=self.cross and self.cross.of_rows(index),
        )  # fmt: skip


@dataclass(frozen=True)
class Consensus:
    """Consensus decoding: of several candidates, the answer is the one most like the others."""

    samples: int = 24  # candidates that are drawn; equal ones count once
    temperature: float = 0.7
    beams: int = 3  # candidates that a search of this width finds
    weights: Literal["uniform", "probability"] = "uniform"  # of the candidates as references
    neighbours: int = 0  # nearest training media, whose captions are references, too
    regression: float = 0  # weight of the likeness that a regression on all training media predicts
    ridge: float = 0.3  # its penalty

    @property
    def uses_training_captions(self) -> bool:
        """Whether training media with their captions are needed."""
        return self.neighbours > 0 or self.regression > 0


@dataclass(frozen=True)
class Decoding:
    """Decoding options. One beam without sampling is greedy; sampling requires one beam."""

    max_new_tokens: int = 20
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    length_penalty: float = 1.0
    length_normalization: Literal["answer", "total"] = "answer"  # length of the answer, or of prompt and answer
    max_length: int | None = None  # tokens of prompt and answer together, instead of `max_new_tokens`
    seed: int = 0  # for sampling
    min_new_tokens: int = 0  # the end token is suppressed before
    repetition_penalty: float = 1.0  # on tokens that the answer contains already
    consensus: Consensus | None = None  # for `AdaptedModel.answer` only, which generates its candidates without it

    def seeds(self, rows: int, each: int) -> list[int]:
        """Return a seed for each of `each` sequences of each of `rows` rows: from `seed` on, for every row alike."""
        return [*range(self.seed, self.seed + each)] * rows

    def max_new_tokens_per_row(self, mask: Tensor) -> Tensor:
        """Return the maximum of new tokens (B,) for each row of a mask (B, T); at least one, as in the paper's code."""
        if self.max_length is None:
            return mask.new_full((len(mask),), self.max_new_tokens)
        return (self.max_length - mask.sum(-1)).clamp_min(1)

    @property
    def counts_prompt(self) -> bool:
        """Whether beam scores are normalised by the length of prompt and answer together."""
        return self.beams > 1 and self.length_normalization == "total"

    @property
    def changes_scores(self) -> bool:
        """Whether logits processors (repetition penalty, minimum length) change the scores."""
        return self.min_new_tokens > 0 or self.repetition_penalty != 1


class StreamCallback(Protocol):
    """Receives each generated token and can stop a row early."""

    def on_token(self, row: int, token: int) -> bool:
        """Receive a row's new token, the end token included; return False to stop the row after it.

        Not called if tokens are not final until generation ends (beam search, transformers' loop).
        """

    def is_wanted(self, row: int) -> bool:
        """Return False once a row was cancelled; its output is then undefined."""


@dataclass(frozen=True)
class Prompt:
    """Tokenized prompts, padded on the left, with their slots."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) 1 = token
    slots: Sequence[Slots] = ()

    @property
    def width(self) -> int:
        """Number of slot columns."""
        return sum(slot.width for slot in self.slots)


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt with the options of its generation."""

    prompt: Prompt
    decoding: Decoding
    eos: int
    pad: int
    seeds: Sequence[int] | None = None  # one per sampled sequence, in place of `decoding.seed`
    callback: StreamCallback | None = None
    num_return_sequences: int = 1  # of each row: its best beams, best first, or samples of it

    @property
    def n_sampled(self) -> int:
        """Number of sequences that are decoded from each row without beams."""
        return 1 if self.decoding.beams > 1 else self.num_return_sequences
