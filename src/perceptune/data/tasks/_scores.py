"""Scoring of a task's answers: exact match, classes of a closed set, captions."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

from perceptune.data.metrics import caption, classes, exact, rouge
from perceptune.data.metrics.base import Scored, group_key
from perceptune.errors import UserError, nearest
from perceptune.types import Sample

CAPTION_METRICS = ("CIDEr", "BLEU-4", "ROUGE-L")
# Keys of metric `rouge` that `rouge: true` adds for captions: means over a medium's references, and the best of them.
ROUGE = tuple(f"rouge{n}_{of}_{over}" for over in ("mean", "best") for n in "1L" for of in ("f1", "recall"))


class Cleaner(Protocol):
    """What scoring uses of a task."""

    lowercase: bool

    def clean(self, text: str) -> str:
        """Extract the answer from a generated text."""


def check_metric(where: str, metric: str, answer_types: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raise `UserError` if `exact_match` does not give the metric, so that training does not start in vain."""
    keys = {group_key(answer_type) or "accuracy" for answer_type in answer_types} | {"accuracy", *more}
    if metric == "macro_f1" and metric not in keys:
        raise UserError(f"{where} gives no metric `macro_f1`: it needs the classes, `task.choices`")
    if metric not in keys:
        raise UserError(f"{where} gives no metric `{metric}`{nearest(metric, keys)}")


def exact_match(
    task: Cleaner, predictions: Sequence[str], samples: Sequence[Sample], *, in_classes: bool = False
) -> Scored:
    """Compare cleaned answers with cleaned targets: over all samples and for each `answer_type` in their meta.

    With `in_classes`, the samples' `choices` are the classes of `metrics/classes.py`.
    """
    for sample in samples:
        require_targets(sample)
    groups = [str(sample.meta.get("answer_type", "")) for sample in samples]
    texts, targets = _cleaned(task, predictions, samples)
    if in_classes:
        own = [sample.meta["choices"] for sample in samples]
        cleaned = {
            key: [*map(task.clean, choices)] for key, choices in {id(choices): choices for choices in own}.items()
        }
        options = classes.Options(lowercase=task.lowercase)
        return classes.score(texts, targets, options, choices=[cleaned[id(choices)] for choices in own], groups=groups)
    scored = exact.score(texts, targets, groups=groups)
    return replace(scored, definition={**scored.definition, "lowercase": task.lowercase})


def _cleaned(task: Cleaner, predictions: Sequence[str], samples: Sequence[Sample]) -> tuple[list[str], list[list[str]]]:
    """Return cleaned predictions and targets."""
    targets = [[task.clean(target) for target in sample.targets] for sample in samples]
    return [task.clean(prediction) for prediction in predictions], targets


def require_targets(sample: Sample) -> None:
    """Raise `UserError` for a sample without targets, whose answer cannot be scored."""
    if not sample.targets:
        raise UserError(f"sample `{sample.id}` has no targets to judge its answer by")


def score_captions(
    task: Cleaner, predictions: Sequence[str], samples: Sequence[Sample], options: caption.Options | None = None, *,
    with_rouge: bool = False,
) -> Scored:  # fmt: skip
    """Compute the values of `metrics/caption.py` against all captions of each medium, and `ROUGE` with `with_rouge`."""
    for sample in samples:
        if not sample.targets:
            raise UserError(f"sample `{sample.id}` has no captions to judge its own by")
    texts, references = _cleaned(task, predictions, samples)
    options = options or caption.Options()
    scored = caption.score(texts, references, options)
    if options.tokenizer is None and scored.definition["tokenizer"] != "ptb":
        _note_once(f"captions: {caption.UNOFFICIAL}; `metric_tokenizer` sets another")
    elif options.tokenizer == "ptb" and caption.tokenizer_of(references) != "ptb":
        _note_once("captions: most are in a script without blanks, where `metric_tokenizer: ptb` takes a whole caption "
                   "for one word: set `characters`")  # fmt: skip
    if not with_rouge:
        return scored
    further = rouge.score(texts, references)
    rows = zip(scored.per_sample, further.per_sample, strict=True)
    return replace(
        scored,
        summary=scored.summary | {key: further.summary[key] for key in ROUGE},
        per_sample=[row | {key: more[key] for key in ROUGE} for row, more in rows],
        definition=scored.definition | {"rouge": further.definition},
    )


@cache
def _note_once(note: str) -> None:
    """Print a note on how values are computed, which every evaluation of a training would repeat."""
    print(note, file=sys.stderr)
