"""Slots at their places in the texts of a batch, and hidden from turns before their own."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from perceptune.errors import UserError
from perceptune.models.text_rows import Place, Tokens
from perceptune.types import Sample, Slots
from perceptune.utils.tensors import move


def hide_from_earlier_turns(slots: Sequence[Slots], tokens: Tokens) -> list[Slots]:
    """Return the slots with the column of each text from which on they are visible."""
    starts = {
        (modality, order): column
        for modality, columns in tokens.visible_from.items()
        for order, column in enumerate(columns.T)
    }
    return [replace(slot, visible_from=starts.get((slot.name, slot.order))) for slot in slots]


def require_one_answer(sample: Sample) -> None:
    """Raise `UserError` if earlier answers are trained on, too: slots that see the whole text would tell them more."""
    if any(turn.is_target for turn in sample.history):
        raise UserError(
            f"sample `{sample.id}` has several answers, and with `method.slot_mask: official` the slots see the text "
            "behind each of them: take `slot_mask: causal`, or `turns: each`"
        )


def place_in_text(slots: Sequence[Slots], tokens: Tokens) -> list[Slots]:
    """Return the slots of all media as one that stands in the texts; others, such as a prompt, stay in front."""
    used = {place for row in tokens.in_text for place in row}
    media = [slot for slot in slots if (slot.name, slot.order) in used]
    if not media:
        return list(slots)
    first: dict[Place, int] = {}
    width = 0
    for slot in media:
        first[slot.name, slot.order] = width
        width += slot.width
    widths = {slot.name: slot.width for slot in media}
    rows = [[first[place] + i for place in row for i in range(widths[place[0]])] for row in tokens.in_text]
    most = max(map(len, rows))
    index = torch.tensor([row + [0] * (most - len(row)) for row in rows])
    states = torch.cat([slot.states[slot.entry] for slot in media], 1)  # (B, all, d)
    index = move(index, states.device)[..., None].expand(-1, -1, states.shape[2])
    present = torch.ones(len(states), dtype=torch.bool)
    others = [slot for slot in slots if all(slot is not one for one in media)]
    return [*others, Slots("media", 0, {0: states.gather(1, index)}, present, in_text=True)]
