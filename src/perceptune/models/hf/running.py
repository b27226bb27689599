"""Forward passes on tensors of a processor: media to slots, and texts with slots to logits, cached or whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from perceptune.errors import nearest
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.generation.decode_state import without_states
from perceptune.lm.slot_hooks import Splice, slots_in_text
from perceptune.models.hf.configuration import INPUTS
from perceptune.models.media_rows import by_count
from perceptune.models.text_rows import Place, Tokens
from perceptune.types import Features, Slots
from perceptune.utils.tensors import places_of_kept, prepend_slot_columns

if TYPE_CHECKING:
    from perceptune.models.hf.slot_cache import SlotCache
    from perceptune.models.slots.model import SlotModel


def build_slots(
    model: "SlotModel", ids: Tensor, mask: Tensor, media: Mapping[str, Tensor | None],
    placeholders: Mapping[str, int],
) -> list[Slots]:  # fmt: skip
    """Return the slots of texts `ids` (B, T) and of the media given by input name.

    `placeholders` maps modalities to the id that stands for each slot in the text. Raises `ValueError` for media that
    do not match the rows or their placeholders, and for a modality that the model has no encoder for.
    """
    features, starts = dict[str, Features](), dict[str, Tensor]()
    for modality, name in INPUTS.items():
        values = media.get(name)
        if values is None:
            continue
        if modality not in model.stores:
            raise ValueError(f"{name}: this model has no encoder of {modality}{nearest(modality, model.stores)}")
        counts = _counts(model, modality, media.get(f"{modality}_counts"), len(values), len(ids))
        features[modality] = by_count(counts, model.stores[modality].encode_loaded(values))
        if (begins := media.get(f"{modality}_starts")) is not None:
            starts[modality] = _columns(begins, counts, mask)
    places = [_places(model, row, placeholders) for row in ids.tolist()] if placeholders else ()
    _check_places(places, features)
    tokens = Tokens(ids, mask, torch.zeros_like(mask, dtype=torch.bool), starts, places)
    return model.arrange_slots(tokens, features)


def _counts(model: "SlotModel", modality: str, given: Tensor | None, n_media: int, rows: int) -> Tensor:
    """Return the number of media of each row (B,) on the CPU. Raises `ValueError` if they do not add up."""
    counts = torch.ones(rows, dtype=torch.long) if given is None else given.cpu().long()
    if len(counts) != rows or int(counts.sum()) != n_media:
        raise ValueError(
            f"{INPUTS[modality]}: {n_media} media for {rows} rows; `{modality}_counts` says how many each row has, "
            f"here {counts.tolist()}"
        )
    most = model.recipe.encoders[modality].max_media
    if int(counts.max()) > most:
        raise ValueError(
            f"{modality}_counts: {int(counts.max())} media in a row, more than `encoders.{modality}.max_media: {most}`"
        )
    return counts


def _columns(starts: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
    """Return the columns (B, M) from which on the media are visible; those of the first turn are from the start."""
    first = mask.cpu().long().argmax(-1)  # of the text, behind the padding
    columns = torch.zeros(len(counts), int(counts.max()), dtype=torch.long)
    rest = iter(starts.tolist())
    for row, count in enumerate(counts.tolist()):
        for place in range(count):
            start = int(next(rest))
            columns[row, place] = start + first[row] if start else 0
    return columns


def _places(model: "SlotModel", row: Sequence[int], placeholders: Mapping[str, int]) -> list[Place]:
    """Return the media whose slots stand in a text, from left to right."""
    names = {placeholder: modality for modality, placeholder in placeholders.items()}
    found: list[str] = [names[token] for token in row if token in names]
    places, at, seen = list[Place](), 0, Counter[str]()
    while at < len(found):
        modality = found[at]
        places.append((modality, seen[modality]))
        seen[modality] += 1
        at += model.text.slots_in_text[modality]
    return places


def _check_places(places: Sequence[Sequence[Place]], features: Mapping[str, Features]) -> None:
    """Raise `ValueError` unless each row has as many media in its text as in the inputs."""
    for number, row in enumerate(places):
        there = Counter(modality for modality, _ in row)
        for modality in {*there, *features}:
            given = int(features[modality].present[number].sum()) if modality in features else 0
            if there[modality] != given:
                raise ValueError(
                    f"{INPUTS[modality]}: row {number} has {given} media of modality {modality}, its text placeholders "
                    f"of {there[modality]}"
                )


def run_whole(model: "SlotModel", ids: Tensor, mask: Tensor, slots: Sequence[Slots], last: int) -> Tensor:
    """Return the logits (B, T or `last`, vocabulary) of a batch of texts, with gradients."""
    keep = _last(ids, last)
    logits = model.lm(ids, mask, slots, keep=keep, use_reference_path=model.use_reference_path)
    return logits.contiguous() if keep is None else logits.unflatten(0, (len(ids), -1))


def run_cached(
    lm: FrozenLM, ids: Tensor, mask: Tensor, slots: Sequence[Slots], cache: "SlotCache", last: int
) -> Tensor:
    """Return the logits of `ids` (B, T), which follow the texts in `cache`; `mask` is as long as both together."""
    text_mask, front = mask, 0
    if not cache.get_seq_length():
        cache.slots = [without_states(slot, ids.device) for slot in slots if not slot.in_text]
        front = cache.width
        in_text = slots_in_text(ids, slots, front)
        ids, mask, positions = prepend_slot_columns(ids, mask, front)
    else:
        slots, in_text = cache.slots, None
        positions = (text_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        mask = nn.functional.pad(mask, (cache.width, 0))
    keep = _last(ids, last)
    with lm.hooks_active(Splice(slots, text_mask), places_of_kept(keep, 0, ids.device), in_text):
        logits: Tensor = lm.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache.inner, use_cache=True
        ).logits
    return logits[:, front:] if keep is None else logits.unflatten(0, (len(ids), -1))


def _last(ids: Tensor, last: int) -> Tensor | None:
    """Mark the last columns of (B, T), on the CPU; None for all."""
    if not last:
        return None
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    keep[:, -last:] = True
    return keep
