"""The choices of a multiple-choice question."""

from perceptune.errors import UserError
from perceptune.types import Sample


def choices_of(sample: Sample) -> list[str]:
    """Return the `choices` of a sample: at least two texts, all different. Raises `UserError` otherwise."""
    given = sample.meta.get("choices")
    if not isinstance(given, list | tuple):
        raise UserError(f"sample `{sample.id}` has no list `choices` to be ranked")
    choices = [choice for choice in given if isinstance(choice, str) and choice.strip()]
    if len(choices) < len(given):
        raise UserError(f"sample `{sample.id}`: `choices` holds what is no text")
    if len(set(choices)) < max(2, len(choices)):
        raise UserError(f"sample `{sample.id}`: `choices` must be at least two different texts")
    return choices
