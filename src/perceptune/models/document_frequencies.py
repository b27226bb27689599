"""The document frequencies of a run's training references: counted from its training data, and stored with it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from perceptune.config.recipe import Recipe
from perceptune.data.build_task import make_task, training_rows
from perceptune.data.metrics.base import DocumentFrequencies
from perceptune.data.tasks.base import Task
from perceptune.errors import NotWritableError, UserError, error_prefix
from perceptune.models.consensus import uses_consensus
from perceptune.models.run_location import FREQUENCIES
from perceptune.types import Sample
from perceptune.utils.atomic_io import write_json


def training_frequencies(recipe: Recipe, task: Task | None = None) -> DocumentFrequencies:
    """Count the n-grams in the targets of a recipe's training samples; the samples of one medium are a document.

    `task` is the recipe's own, if it is there.
    """
    task = make_task(recipe) if task is None else task
    try:
        return DocumentFrequencies.count([texts for _, texts in training_documents(recipe, task) if texts])
    except ValueError as error:
        raise UserError(f"split `{task.splits[0]}`: {error}") from error


def training_documents(recipe: Recipe, task: Task) -> list[tuple[Sample, list[str]]]:
    """Return a recipe's training samples, the first of those with the same media, and all different targets of them."""
    documents: dict[Any, tuple[Sample, dict[str, None]]] = {}
    for sample in training_rows(recipe, task):
        media = tuple(medium for _, medium in sample.iter_media())
        documents.setdefault(media or sample.id, (sample, {}))[1].update(dict.fromkeys(sample.targets))
    return [(sample, [*texts]) for sample, texts in documents.values()]


def run_frequencies(run: Path, recipe: Recipe) -> DocumentFrequencies | None:
    """Return the document frequencies stored with a run if its recipe needs them, else None.

    If there are none, count them, and store them if possible.
    """
    if not uses_consensus(recipe):
        return None
    path = run / FREQUENCIES
    if path.is_file():
        return read_frequencies(path)
    with error_prefix(f"decode.consensus: `{run}` has no {FREQUENCIES}, so its training data is needed"):
        frequencies = training_frequencies(recipe)
    with suppress(NotWritableError):  # of a read-only run they are counted again at each use
        write_frequencies(run, frequencies)
    return frequencies


def write_frequencies(run: Path, frequencies: DocumentFrequencies) -> None:
    """Store document frequencies with a run."""
    write_json(run / FREQUENCIES, vars(frequencies))


def read_frequencies(path: Path) -> DocumentFrequencies:
    """Read stored document frequencies. Raises `UserError` for a damaged file."""
    try:
        found = DocumentFrequencies(**json.loads(path.read_text(encoding="utf-8")))
        found.rarity("")
        found.tokens("")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: damaged; delete it to count it again from the training data") from None
    return found
