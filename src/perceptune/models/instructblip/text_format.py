"""Text input of an InstructBLIP: image tokens and the text for its LM, an instruction for its Q-Former."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perceptune.config.schema import TextConfig
from perceptune.errors import UserError
from perceptune.lm.frozen_blip import IGNORED, FrozenBlip, Instruction, LMTokens
from perceptune.models.text_format import TextFormat
from perceptune.models.text_rows import Tokens
from perceptune.types import Sample

Instructions = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class BlipTokens(Tokens):
    """A batch of texts; `labels` are an encoder-decoder LM's targets, `instructions` the Q-Former's input."""

    labels: Tensor | None = None  # (B, S), padded on the right with -100
    instructions: tuple[Instruction, ...] = ()

    @property
    def n_predicted(self) -> int:
        return super().n_predicted if self.labels is None else int((self.labels != IGNORED).sum())

    def for_lm(self, device: torch.device) -> LMTokens:
        """Return the LM's input."""
        return LMTokens(self.input_ids, self.attention_mask, self.supervised, self.labels).to(device)


class BlipText(TextFormat):
    """Template with two tokenizers; `instructions` derives the Q-Former's input from the LM's.

    A decoder-only LM reads image, start token and prompt, padded on the left, and continues with the answer. An
    encoder-decoder LM reads image, prompt and end token, padded on the right, and its decoder generates the answer.
    `qformer_tokenizer` is None for BLIP-2, whose Q-Former has no text input.
    """

    def __init__(
        self, tokenizer: Any, qformer_tokenizer: Any, config: TextConfig, blip: FrozenBlip, instructions: Instructions,
        *, pad_token: str | None = None, longest: int | None = None,
    ) -> None:  # fmt: skip
        rows = blip.language_model.get_input_embeddings().weight.shape[0]
        super().__init__(tokenizer, config, vocabulary=rows, pad_token=pad_token, longest=longest)
        if blip.image_token in self.special_tokens.values():
            raise UserError("text.template: the image's tokens stand in front of it by themselves; leave them out")
        self.qformer_tokenizer, self.instructions = qformer_tokenizer, instructions
        self.encoder_decoder = blip.encoder_decoder
        self._image, self.n_image_tokens = [blip.image_token] * blip.n_queries, blip.n_queries
        if self.encoder_decoder and config.supervise == "all":
            raise UserError("text.supervise: `all` is for decoder-only LMs: here the prompt is in the encoder")
        if qformer_tokenizer is not None:
            self._room = int(blip.model.config.qformer_config.max_position_embeddings)

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Return the prompt's tokens after the image's and, for an encoder-decoder LM, before the end token."""
        return [*self._image, *super().prompt_ids(sample), *([self.eos] if self.encoder_decoder else [])]

    def count_prompt_tokens(self, sample: Sample) -> int:
        self.encode_prompts([sample])  # checks that it fits the Q-Former, too
        return len(self.prompt_ids(sample)) - self.n_image_tokens

    def target_ids(self, target: str) -> list[int]:
        """Return the answer's tokens, without the space before it if the answer begins a text of its own."""
        if not self.encoder_decoder:
            return super().target_ids(target)
        form = self.config.target.lstrip()
        return self._ended(self._filled(form, "{target}", target.lstrip() if form.startswith("{target}") else target))

    def training_ids(self, sample: Sample, target: str) -> tuple[list[int], int]:
        """Return what every backbone returns; for an encoder-decoder LM the last ones are its labels."""
        prompt, answer = self.prompt_ids(sample), self._answer_ids(sample, target)
        n = len(self._image)
        self._checked(prompt[n:] + ([] if self.encoder_decoder else answer), sample)
        # Image tokens are never predicted, nor is the first token of the text.
        everything = len(prompt) - n + len(answer) - 1
        return prompt + answer, len(answer) if self.config.supervise == "answer" else everything

    def require_fit(self, sample: Sample, target: str) -> None:
        """Raise the errors of `training_ids`."""
        self.training_ids(sample, target)

    def encode_prompts(self, samples: Sequence[Sample]) -> BlipTokens:
        """Encode prompts for generation."""
        return self._tokens(samples, [self.prompt_ids(sample) for sample in samples], [0] * len(samples), None)

    def encode_training(self, samples: Sequence[Sample], targets: Sequence[str]) -> BlipTokens:
        """Encode prompts and targets for training."""
        pairs = [self.training_ids(sample, target) for sample, target in zip(samples, targets, strict=True)]
        if not self.encoder_decoder:
            return self._tokens(samples, [ids for ids, _ in pairs], [n for _, n in pairs], None)
        labels = pad_right([ids[-n:] for ids, n in pairs], IGNORED)[0]
        return self._tokens(samples, [ids[:-n] for ids, n in pairs], [0] * len(samples), labels)

    def _tokens(
        self, samples: Sequence[Sample], rows: Sequence[Sequence[int]], supervised: Sequence[int], labels: Tensor | None
    ) -> BlipTokens:
        if self.encoder_decoder:
            ids, mask = pad_right(rows, self.pad)
            marked = torch.zeros_like(mask, dtype=torch.bool)
        else:
            padded = self.pad_left(rows, supervised)
            ids, mask, marked = padded.input_ids, padded.attention_mask, padded.supervised
        return BlipTokens(ids, mask, marked, labels=labels, instructions=self._instructions_of(samples))

    def _instructions_of(self, samples: Sequence[Sample]) -> tuple[Instruction, ...]:
        """Return one instruction of each kind that the method requests, each for all rows."""
        if self.qformer_tokenizer is None:
            return ()
        rows = [[self._instruction_ids(text, sample) for text in self._said(sample)] for sample in samples]
        return tuple(
            Instruction(*pad_right(kind, self.qformer_tokenizer.pad_token_id or 0)) for kind in zip(*rows, strict=True)
        )

    def _said(self, sample: Sample) -> Sequence[str]:
        return self.instructions(self.as_text(sample.prompt))

    def _instruction_ids(self, text: str, sample: Sample) -> list[int]:
        ids = list(self.qformer_tokenizer(text, split_special_tokens=True).input_ids)
        if len(ids) > self._room:
            raise UserError(
                f"sample `{sample.id}`: {len(ids)} tokens of instruction, more than the Q-Former has positions for "
                f"({self._room})"
            )
        return ids


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask (B, T) of rows padded on the right to the longest."""
    length = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (length - len(row)) for row in rows])
    return ids, (torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]).long()
