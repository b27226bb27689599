"""Token ids that stand for slots in a text, as LLaVA's `<image>` does."""

import copy
from typing import Any

from perceptune.models.text_format import TextFormat


def placeholder(modality: str) -> str:
    """Return the text of a placeholder."""
    return f"<{modality}>"


def with_placeholders(text: TextFormat) -> Any:
    """Return a copy of the run's tokenizer that has a special token for the slots of each modality in the text."""
    tokenizer = copy.deepcopy(text.tokenizer)
    if text.slots_in_text:
        tokenizer.add_tokens([placeholder(modality) for modality in text.slots_in_text], special_tokens=True)
    return tokenizer


def placeholders_of(text: TextFormat) -> dict[str, int]:
    """Return the id of each modality's placeholder; empty if no slots stand in the text."""
    if not text.slots_in_text:
        return {}
    tokenizer = with_placeholders(text)
    return {name: int(tokenizer.convert_tokens_to_ids(placeholder(name))) for name in text.slots_in_text}
