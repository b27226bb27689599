"""Rows of a processor: tokens, their media and which of them answer, and batches of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import BatchFeature

from perceptune.data.tasks.base import with_tags
from perceptune.errors import UserError
from perceptune.models.build import encoder_alone, text_alone
from perceptune.models.hf.configuration import INPUTS, PerceptuneConfig
from perceptune.models.hf.messages import Chat, to_medium
from perceptune.models.hf.placeholders import placeholder, with_placeholders
from perceptune.models.text_encoding import Part, Template
from perceptune.models.text_rows import Place, TextRow, messages_of
from perceptune.types import IN_TEXT, Medium

if TYPE_CHECKING:
    from perceptune.config.recipe import Recipe
    from perceptune.encoders.base import Encoder
    from perceptune.models.text_format import TextFormat


def read_config(source: str | Path, options: Mapping[str, Any]) -> tuple[PerceptuneConfig, Sequence[str]]:
    """Return the configuration of a folder or repository, and the overrides among the options."""
    from perceptune.models.hf.conversion import HUB

    config = options.get("config")
    if not isinstance(config, PerceptuneConfig):
        hub = {name: options[name] for name in HUB if name in options}
        config = PerceptuneConfig.from_pretrained(str(source), **hub)
    return config, options.get("overrides", ())


def parts_of(config: PerceptuneConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the parts of a processor: tokenizer, template, and encoders without weights."""
    from perceptune.models.hf.conversion import recipe_of

    recipe: Recipe = recipe_of(config, overrides)
    text = text_alone(recipe)
    encoders = {modality: encoder_alone(recipe, modality) for modality in recipe.encoders}
    return {"tokenizer": with_placeholders(text), "text": text, "encoders": encoders}


class Parts(Protocol):
    """What rows are made with: the parts of a processor."""

    tokenizer: Any
    text: TextFormat
    encoders: Mapping[str, Encoder]


@dataclass(frozen=True)
class Asked:
    """One row: its tokens, placeholders among them, and its media in order by modality."""

    row: TextRow
    media: Mapping[str, Sequence[Medium]]

    @classmethod
    def of_chat(cls, processor: Parts, chat: Chat, *, ended: bool) -> Asked:
        """Return the row of a conversation; its answer, if it has one, ends unless more is to follow."""
        sample, text = chat.sample, processor.text
        if chat.answer is None:
            row = text.prompt_row(sample)
        elif ended:
            row = text.training_row(sample, chat.answer)
        else:
            row, answer = text.prompt_row(sample), text.plain_ids(chat.answer)
            row = replace(row, ids=[*row.ids, *answer])
        return cls(row, {modality: sample.list_media(modality) for modality in sample.media})

    @classmethod
    def of_text(cls, processor: Parts, prompt: str, media: Mapping[str, Sequence[Medium]], *, special: bool) -> Asked:
        """Return the row of a text that is a prompt already; its tags of media are their places or are left out."""
        text = processor.text
        counts = text.slots_in_text
        given = [modality for modality, own in media.items() if own]
        tag, pieces = "|".join(given), [prompt]
        if given and not counts:  # the slots stand in front of the text, wherever it has tags
            pieces = [re.sub(rf"<(?:{tag})>\n?", "", prompt)]
        elif given:
            pieces = re.split(rf"<({tag})>", prompt)
            if len(pieces) == 1:  # no tags: before the text
                pieces = [*(piece for name in given for _ in media[name] for piece in ("", name)), prompt]
        in_text: list[Place] = []
        for modality in pieces[1::2]:
            in_text.append((modality, sum(name == modality for name, _ in in_text)))
        parts: list[Part] = [Template(piece) if n % 2 == 0 else counts[piece] for n, piece in enumerate(pieces)]
        ids = text.encoding.encode_parts(parts)
        start = text.bos if special and ids[: len(text.bos)] != text.bos else []
        return cls(TextRow([*start, *ids], in_text=in_text), media)

    def truncated(self, length: int) -> Asked:
        """Return the row with its first `length` tokens. Raises `ValueError` if a slot is behind them."""
        if IN_TEXT in self.row.ids[length:]:
            raise ValueError(f"max_length: {length} tokens cut off slots of the row's media")
        return replace(self, row=replace(self.row, ids=self.row.ids[:length]))


def rows_of_media(modality: str, given: Any, texts: Sequence[str], rate: int | None) -> list[list[Medium]]:
    """Return the media of each text: of one, a single one or a list; of several, one each or a list each."""
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if any(isinstance(one, list | tuple) for one in listed):
        rows = [list(one) if isinstance(one, list | tuple) else [one] for one in listed]
    else:
        rows = [listed] if len(texts) == 1 else [[one] for one in listed]
    if len(rows) != len(texts):
        raise ValueError(f"{modality}: {len(rows)} for {len(texts)} texts: give one for each, or a list for each")
    return [[to_medium(one, modality, rate) for one in row if one is not None] for row in rows]


def render(text: TextFormat, chat: Chat, *, ended: bool) -> str:
    """Return a conversation in the run's template as a text, special tokens written out."""
    text.prompt_row(chat.sample)  # raises what does not fit
    sample = chat.sample
    turns = messages_of(sample)
    texts = [with_tags(turn.text, turn.marks, before={}) if text.slots_in_text else turn.text for turn in turns]
    if text.chat is None:
        front = ""
        if text.slots_in_text and not sample.marks:  # in front of the template, too
            front, texts[-1] = with_tags("", turns[-1].marks, before={}), turns[-1].text
        shown = text.tokenizer.decode(text.bos) + front + text.config.template.replace("{prompt}", texts[-1])
        shown += text.config.separator or ""
    else:
        parts = text.chat.parts_of(tuple(turn.role for turn in turns))
        shown = "".join(part if isinstance(part, str) else texts[part] for part in parts)
    if chat.answer is None:
        return shown
    answer = text.config.target if text.chat is None else text.config.target.lstrip()
    end = text.tokenizer.convert_ids_to_tokens(text.eos)
    return shown + (answer.replace("{target}", chat.answer) + end if ended else chat.answer)


def collate(
    processor: Parts, asked: Sequence[Asked], tensors: str | None, *, side: str = "left",
    multiple: int | None = None, with_answers: bool = False,
) -> BatchFeature:  # fmt: skip
    """Return the rows as one batch, padded on a side; without `tensors` as lists, not padded."""
    text = processor.text
    rows = [_ids(processor, one.row) for one in asked]
    answers = [_answers(one.row) for one in asked]
    data: dict[str, Any] = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    if with_answers:
        data["assistant_masks"] = answers
    if tensors is not None:
        longest = max(map(len, rows))
        longest = longest if multiple is None else -(-longest // multiple) * multiple
        fill = {"input_ids": text.pad, "attention_mask": 0, "assistant_masks": 0}
        data = {name: torch.tensor([_padded(row, longest, fill[name], side) for row in given])
                for name, given in data.items()}  # fmt: skip
    for modality in processor.encoders:
        data |= _loaded(processor, asked, modality)
    unknown = {modality for one in asked for modality, own in one.media.items() if own} - set(processor.encoders)
    if unknown:
        raise UserError(f"{min(unknown)}: the run has no encoder of it, but of {', '.join(processor.encoders)}")
    return BatchFeature(data, tensor_type=None if tensors == "pt" else tensors)


def _ids(processor: Parts, row: TextRow) -> list[int]:
    """Return a row's tokens with placeholders in place of slots."""
    if not row.in_text:
        return row.ids
    tokenizer, counts = processor.tokenizer, processor.text.slots_in_text
    slots = iter(
        [tokenizer.convert_tokens_to_ids(placeholder(name)) for name, _ in row.in_text for _ in range(counts[name])]
    )
    return [next(slots) if token == IN_TEXT else token for token in row.ids]


def _answers(row: TextRow) -> list[int]:
    marked = [0] * len(row.ids)
    for start, end in row.supervised:
        marked[start:end] = [1] * (end - start)
    return marked


def _padded(row: list[int], length: int, fill: int, side: str) -> list[int]:
    rest = [fill] * (length - len(row))
    return [*row, *rest] if side == "right" else [*rest, *row]


def _loaded(processor: Parts, asked: Sequence[Asked], modality: str) -> dict[str, Any]:
    """Return the media of a modality, stacked, and how they belong to the rows where that is not one each."""
    media = [medium for one in asked for medium in one.media.get(modality, ())]
    if not media:
        return {}
    encoder = processor.encoders[modality]
    data: dict[str, Any] = {INPUTS[modality]: torch.stack([encoder.load(medium) for medium in media])}
    counts = [len(one.media.get(modality, ())) for one in asked]
    if any(count != 1 for count in counts):
        data[f"{modality}_counts"] = torch.tensor(counts)
    starts = [
        start for one, count in zip(asked, counts, strict=True)
        for start in one.row.turns.get(modality, [0] * count)
    ]  # fmt: skip
    if any(starts):
        data[f"{modality}_starts"] = torch.tensor(starts)
    return data
