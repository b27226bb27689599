"""Parsing of prediction and reference rows in the usual layouts.

Predictions: an id with a text. References: an id with the reference texts and the groups of the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perceptune.data.metrics.base import Needs
from perceptune.data.records import Record, first_line, json_type, short
from perceptune.evaluation.score_files.files import ID_KEYS, entries

_TEXTS = ("prediction", "answer", "caption")
_REFERENCES = ("references", "targets", "captions", "caption", "answer", "multiple_choice_answer")
_ANSWERS = ("answers", "direct_answers")
_MEDIA = ("image_id", "imageId", "image", "audio", "video", "media")
_KEYS = (*ID_KEYS, *_TEXTS, *_REFERENCES, *_ANSWERS, "choices", "correct_choice_idx")


@dataclass(frozen=True)
class PredictionRow:
    """A predicted text and its location."""

    where: str
    text: str


@dataclass(frozen=True)
class ReferenceRow:
    """The references of a sample. Fields that no metric needs are empty."""

    where: str
    references: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    medium: str = ""  # samples of the same medium are resampled together for intervals
    entailed: tuple[str, ...] | None = None  # ids of questions whose answers this one's answer entails (GQA)
    left_out: frozenset[str] = frozenset()  # metrics for which the sample does not count

    def cut(self) -> ReferenceRow:
        """Return a copy with only the first line of each text."""
        references, answers = (tuple(map(first_line, texts)) for texts in (self.references, self.answers))
        return replace(self, references=references, answers=answers)


def read_predictions(
    address: str, needs: Sequence[Needs] = (), say: Callable[[str], None] = lambda note: None
) -> dict[str, PredictionRow]:
    """Read the predicted texts by id. Raises `UserError` for an invalid row and for a repeated id."""
    own = [one.prediction_key for one in needs if one.prediction_key]
    found: dict[str, PredictionRow] = {}
    for entry in entries(address, say):
        record = Record(entry.where, entry.values, (*_KEYS, *own))
        keys = [key for key in (*own, *_TEXTS) if key in record.values]
        if not keys:
            raise record.lacks([*_TEXTS, *own])
        if len(own) > 1 and {*own} <= {*keys}:
            raise record.error(f"{' and '.join(f'`{key}`' for key in own)} differ: score each metric for itself")
        id = _id(record, first="image_id" if keys[0] == "caption" else "id")
        _require_new(record, id, found)
        found[id] = PredictionRow(record.where, record.text(keys[0]))
    return found


def read_references(
    address: str, needs: Mapping[str, Needs], say: Callable[[str], None] = lambda note: None
) -> dict[str, ReferenceRow]:
    """Read the references that metrics with these needs use, by id.

    Rows with one caption each of the same image are merged.
    """
    found: dict[str, ReferenceRow] = {}
    for entry in entries(address, say):
        meta = entry.values.get("meta")
        values = {**meta, **entry.values} if isinstance(meta, dict) else entry.values  # layout of a run's predictions
        record = Record(entry.where, values, _KEYS)
        one_of_several = "caption" in values and not values.keys() & {"references", "targets", "captions"}
        id = _id(record, first="image_id" if one_of_several else "id")
        reference = _reference(record, id, needs)
        if one_of_several and id in found:
            found[id] = replace(found[id], references=found[id].references + reference.references)
            continue
        _require_new(record, id, found)
        found[id] = reference
    return found


def _reference(record: Record, id: str, needs: Mapping[str, Needs]) -> ReferenceRow:
    values = record.values
    medium = next((str(values[key]) for key in _MEDIA if values.get(key)), id)
    choices = _choices(record) if any(one.choices for one in needs.values()) else ()
    references = _right_choice(record, choices) if choices else ()
    kinds = {one.references for one in needs.values()}
    if "references" in kinds and not references:
        references = _texts(record, _REFERENCES)
        if not any(text.strip() for text in references):
            raise record.error("no reference holds any text")
    entailed = values.get("entailed")
    return ReferenceRow(
        record.where, references, _texts(record, _ANSWERS) if "answers" in kinds else (), choices, _groups(record),
        medium, tuple(map(str, entailed)) if isinstance(entailed, list) else None,
        frozenset(name for name, one in needs.items() if _is_left_out(values, one)),
    )  # fmt: skip


def _is_left_out(values: Mapping[str, Any], needs: Needs) -> bool:
    return needs.not_counted is not None and values.get(needs.not_counted[0]) is needs.not_counted[1]


def _texts(record: Record, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the strings at the first of the keys that exists; annotators' answers may be objects with an `answer`."""
    key = next((key for key in keys if record.values.get(key) is not None), None)
    if key is None:
        null = [key for key in keys if key in record.values]
        raise record.error(f"`{null[0]}` is null") if null else record.lacks(keys)
    value = record.values[key]
    if isinstance(value, str) and (found := record.items(key, value)) != [value]:
        value = found  # a list written as text
    if isinstance(value, str) and key in ("targets", "caption", "answer", "multiple_choice_answer"):
        return (record.check_text(key, value),)
    if not isinstance(value, list):
        raise record.error(f"`{key}` is {json_type(value)}, not a list of strings")
    if not value:
        raise record.error(f"`{key}` is empty")
    items = [item["answer"] if isinstance(item, dict) and "answer" in item else item for item in value]
    texts = [record.check_text(f"{key}[{index}]", text) for index, text in enumerate(items)]
    if "raw" in record.values:  # a run's own predictions, whose targets were parsed before
        return tuple(texts)
    return tuple(item for text in texts for item in record.items(key, text))


def _choices(record: Record) -> tuple[str, ...]:
    return _texts(record, ["choices"]) if "choices" in record.values else ()


def _right_choice(record: Record, choices: Sequence[str]) -> tuple[str, ...]:
    """Return the text of the correct choice if its index is given."""
    if "correct_choice_idx" not in record.values:
        return ()
    number = record.values["correct_choice_idx"]
    if isinstance(number, str) and number.isdecimal():
        number = int(number)  # cells of a table are text
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(choices):
        raise record.error(
            f"`correct_choice_idx` is {short(repr(number))}, not the number of one of {len(choices)} choices"
        )
    return (choices[number],)


def _groups(record: Record) -> tuple[str, ...]:
    """Return the names of the groups with a separate accuracy."""
    groups = [record.text("answer_type")] if record.values.get("answer_type") is not None else []
    if record.values.get("question_type") is not None:
        groups.append(f"question {record.text('question_type')}")
    match record.values.get("types"):
        case {"structural": str(structural)}:  # GQA
            groups.append("open" if structural == "query" else "binary")
    return tuple(groups)


def _id(record: Record, first: str) -> str:
    keys = [key for key in (first, *ID_KEYS) if key in record.values]
    if not keys:
        raise record.lacks(["id"])
    match record.values[keys[0]]:
        case bool() | float() as value:
            kind = "a boolean" if isinstance(value, bool) else f"the number {value}"
            raise record.error(f"`{keys[0]}` is {kind}, not a string or a whole number")
        case int(value):
            return str(value)
    if not record.text(keys[0]).strip():
        raise record.error(f"`{keys[0]}` is empty")
    return record.text(keys[0])


def _require_new(record: Record, id: str, found: dict[str, Any]) -> None:
    if id in found:
        raise record.error(f"the id `{short(id)}` was given before: {found[id].where}")
