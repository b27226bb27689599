"""What transformers' `generate` is given: slots in place of media, and a cache that knows them."""

from typing import Any

import torch
from torch import Tensor

from perceptune.models.hf.configuration import INPUTS
from perceptune.models.hf.slot_cache import SlotCache

_MEDIA = (*INPUTS.values(), *(f"{modality}_{what}" for modality in INPUTS for what in ("counts", "starts")))
_REFUSED = {
    "assistant_model": "assisted generation needs a draft model that sees the media too",
    "prompt_lookup_num_tokens": "assisted generation is not supported",
    "inputs_embeds": "the slots stand beside token ids; give `input_ids`",
    "cache_implementation": "slots need a cache without a window or a fixed size; leave it out",
}


def prepare(model: Any, inputs: Tensor | None, config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `GenerationMixin.generate` for a `PerceptuneForConditionalGeneration`.

    Raises `ValueError` for those that cannot be met.
    """
    for name, why in _REFUSED.items():
        if options.get(name, getattr(config, name, None)) is not None:
            raise ValueError(f"{name}: {why}")
    ids = options.get("input_ids") if inputs is None else inputs
    if ids is None:
        raise ValueError("input_ids: is missing; the processor makes them of a text")
    penalty = options.get("repetition_penalty", config.repetition_penalty)
    if model.config.placeholders and penalty not in (None, 1.0):
        raise ValueError("repetition_penalty: not with slots in the text, whose placeholders have no logits")
    cache = options.get("past_key_values")
    if cache is not None and not isinstance(cache, SlotCache):
        raise ValueError(f"past_key_values: {type(cache).__name__} does not know the slots; leave it out")
    media = {name: options.pop(name) for name in _MEDIA if name in options}
    is_first = cache is None or not cache.get_seq_length()
    slots = model.build_slots(ids, options.get("attention_mask"), is_first=is_first, **media)
    prepared = {**options, "slots": slots, "slot_rows": torch.arange(len(ids), device=ids.device)}
    if any(slot.sees_text for slot in slots):  # their states change with every token
        return {**prepared, "use_cache": False}
    if options.get("use_cache", config.use_cache) is not False and cache is None:
        prepared["past_key_values"] = SlotCache()
    return prepared
