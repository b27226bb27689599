"""Cross-attention of a forward pass: what the columns of the text read of media beside the LM's own attention.

The methods' modules are called at the input of their layers, with the text's states and the media's keys and values.
No column of the text is a key, so that a text position depends on no other one by it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perceptune.types import CrossAttended, Slots
from perceptune.utils.tensors import move


def in_turn(visible_from: Tensor | None, queries: Tensor, rows: int) -> Tensor:
    """Return (B, 1, Q) bool: which text columns `queries` (Q,) slots are visible to.

    Columns below 0 are slots, such as a prompt's: they see media of the first turn only, because all turns see them.
    """
    if visible_from is None:
        return torch.ones(rows, 1, len(queries), dtype=torch.bool, device=queries.device)
    start = move(visible_from, queries.device)
    return (queries.clamp_min(0)[None] >= start[:, None])[:, None]


def concatenate_rows(parts: Sequence[CrossAttended]) -> CrossAttended:
    """Return the rows of several media with one `layout` behind one another."""
    kv = [
        (torch.cat([keys for keys, _ in pairs]), torch.cat([values for _, values in pairs]))
        for pairs in zip(*(part.kv for part in parts), strict=True)
    ]
    return CrossAttended(kv, parts[0].layers)


class MediaReader:
    """The media of one forward pass; those of one modality are read together."""

    def __init__(self, slots: Sequence[Slots]) -> None:
        by_modality: dict[str, list[Slots]] = {}
        for slot in slots:
            if slot.cross is not None:
                by_modality.setdefault(slot.name, []).append(slot)
        self._media = list(by_modality.values())
        self._joined: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._visible: dict[tuple[int, int, int], Tensor] = {}

    def acts_at(self, layer: int) -> bool:
        """Return whether the text reads media at the input of a layer."""
        return any(media[0].cross is not None and layer in media[0].cross.layers for media in self._media)

    def add(self, layer: int, text: Tensor, first: int) -> Tensor:
        """Return the input of a layer with what was read added: `text` (B, T, d) begins with column `first`."""
        added = text
        for number, media in enumerate(self._media):
            cross = media[0].cross
            assert cross is not None
            if layer in cross.layers:
                place, attend = cross.layers[layer]
                visible = self._visible_to(number, text, first)
                added = added + attend(text, *self._kv(number, place), visible).to(text.dtype)
        return added

    def _kv(self, number: int, place: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of all media of a modality behind one another."""
        if (number, place) not in self._joined:
            pairs = [slot.cross.kv[place] for slot in self._media[number] if slot.cross is not None]
            keys, values = zip(*pairs, strict=True)
            self._joined[number, place] = pairs[0] if len(pairs) == 1 else (torch.cat(keys, 2), torch.cat(values, 2))
        return self._joined[number, place]

    def _visible_to(self, number: int, text: Tensor, first: int) -> Tensor:
        """Return (B, 1, T or 1, N) bool: absent media are hidden, and those of later turns from earlier columns."""
        media = self._media[number]
        is_same = all(slot.visible_from is None for slot in media)  # for all columns
        key = (number, -1, 1) if is_same else (number, first, text.shape[1])
        if key not in self._visible:
            parts = []
            for slot in media:
                assert slot.cross is not None
                seen = move(slot.present, text.device)[:, None, None, None]
                if slot.visible_from is not None:
                    columns = torch.arange(first, first + text.shape[1], device=text.device)
                    seen = seen & in_turn(slot.visible_from, columns, len(text))[..., None]
                parts.append(seen.expand(-1, -1, -1, slot.cross.kv[0][0].shape[2]))
            self._visible[key] = torch.cat([part.expand(-1, -1, key[2], -1) for part in parts], -1)
        return self._visible[key]
