"""The tokens of one sample, and of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.types import Mark, Message, Sample
from perceptune.utils.tensors import pad_left

Place = tuple[str, int]  # modality of a medium, and its number among those of the sample


@dataclass(frozen=True)
class TextRow:
    """Tokens of a sample; slots in the text are `IN_TEXT`."""

    ids: list[int]
    supervised: Sequence[tuple[int, int]] = ()  # spans of the tokens that are to be predicted
    # Modality -> the first token of the turn of each of its media; empty if all belong to the first turn.
    turns: Mapping[str, Sequence[int]] = field(default_factory=dict)
    in_text: Sequence[Place] = ()  # media whose slots stand in the text, from left to right


@dataclass(frozen=True)
class Tokens:
    """A batch of texts, padded on the left."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T) 1 = token
    supervised: Tensor  # (B, T) bool: tokens that are to be predicted
    # Modality -> (B, M) columns from which on its media are visible; empty if they are to the whole text.
    visible_from: Mapping[str, Tensor] = field(default_factory=dict)
    in_text: Sequence[Sequence[Place]] = ()  # of each row; () = no row has any

    @property
    def n_predicted(self) -> int:
        """Number of predicted tokens; the first token has no context and is not predicted."""
        return int(self.supervised[:, 1:].sum())


def pad_rows(rows: Sequence[TextRow], pad: int) -> Tokens:
    """Pad rows on the left to the longest."""
    ids, mask = pad_left([row.ids for row in rows], pad)
    supervised = torch.zeros(ids.shape, dtype=torch.bool)
    shifts = [ids.shape[1] - len(row.ids) for row in rows]
    for index, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        for start, end in row.supervised:
            supervised[index, shift + start : shift + end] = True
    in_text = [row.in_text for row in rows] if any(row.in_text for row in rows) else ()
    return Tokens(ids, mask, supervised, _visible_from(rows, shifts), in_text)


def _visible_from(rows: Sequence[TextRow], shifts: Sequence[int]) -> dict[str, Tensor]:
    """Return the columns where the turns of the rows' media begin; those of the first turn begin with the padding."""
    found = {}
    for modality in dict.fromkeys(name for row in rows for name in row.turns):
        most = max(len(row.turns.get(modality, ())) for row in rows)
        columns = torch.zeros(len(rows), most, dtype=torch.long)
        for index, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
            for place, start in enumerate(row.turns.get(modality, ())):
                columns[index, place] = start + shift if start else 0
        found[modality] = columns
    return found


def messages_of(sample: Sample) -> list[Message]:
    """Return all turns up to the answer, with a mark for each medium; those without stand before the prompt.

    Raises `UserError` if marks and media do not match, or turns are in another order than question and answer.
    """
    earlier = list(sample.history)
    roles = [message.role for message in earlier]
    spoken = roles[roles[:1] == ["system"] :]
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise UserError(
            f"sample `{sample.id}`: its turns are {', '.join([*roles, 'user'])}; after a system message, if any, "
            "question and answer take turns"
        )
    counts = {modality: len(sample.list_media(modality)) for modality in sample.media}
    for mark in (mark for message in earlier for mark in message.marks):
        counts[mark.modality] = counts.get(mark.modality, 0) - 1
    marks = sample.marks or tuple(Mark(0, modality) for modality, count in counts.items() for _ in range(count))
    for mark in marks:
        counts[mark.modality] = counts.get(mark.modality, 0) - 1
    for modality, count in counts.items():
        if count:
            media = len(sample.list_media(modality))
            raise UserError(f"sample `{sample.id}`: {media - count} marks of modality {modality} for {media} media")
    return [*earlier, Message("user", sample.prompt, marks)]
