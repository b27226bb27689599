"""Multiple choice: which of the given choices a prediction names, by its text or by its letter.

A prediction is a choice when it equals its text, case and whitespace aside, or its letter: `B`, `(B)`, `b.`, `B: blue`.
The text comes first, so a choice may itself be a letter. Without the choices only the texts are compared.
"""

import re
from collections.abc import Sequence

from perceptune.data.metrics.base import Groups, MetricOptions, Needs, Scored, averages, scored_by_group, zipped

NEEDS = Needs(prediction_key="multiple_choice", choices=True, by_group="accuracy")

_LETTER = re.compile(r"\(?([a-z])(?:\)|\.|:|$)\s*(.*)")


class Options(MetricOptions):
    """No options."""


def score(
    predictions: Sequence[str], references: Sequence[Sequence[str]], options: Options = Options(), *,
    choices: Sequence[Sequence[str]] | None = None, groups: Groups | None = None,
) -> Scored:  # fmt: skip
    """Compute `accuracy` from 0 to 1; `references` are texts of correct choices.

    With `choices` also `no_choice`, the fraction of predictions that name none of them and are wrong. Raises
    `ValueError` if there are no samples, or one without references.
    """
    pairs = list(zipped([_form(prediction) for prediction in predictions], references))
    named: list[str | None] = [text for text, _ in pairs]
    if choices is not None:
        named = [_named(text, [_form(choice) for choice in several])
                 for (text, _), several in zip(pairs, choices, strict=True)]  # fmt: skip
    hits = [float(text in [_form(one) for one in accepted]) for text, (_, accepted) in zip(named, pairs, strict=True)]
    scored = scored_by_group(hits, groups, {"metric": "choice", "choices_given": choices is not None})
    if choices is None:
        return scored
    rows = [{**row, "no_choice": float(text is None)} for row, text in zip(scored.per_sample, named, strict=True)]
    return Scored(averages(rows), rows, scored.definition)


def _named(text: str, choices: Sequence[str]) -> str | None:
    """Return the choice that a text names; None if it names none."""
    if text in choices:
        return text
    match = _LETTER.fullmatch(text)
    if match is None or (number := ord(match[1]) - ord("a")) >= len(choices):
        return None
    rest = match[2].strip()  # after the letter only the choice's text or nothing is allowed
    return choices[number] if rest in ("", choices[number]) else None


def _form(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")
