"""Rows to predict in another form than canonical JSON lines or plain media: recognised as for training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from perceptune.config.recipe import Recipe
from perceptune.config.registry import leaf
from perceptune.config.schema import NamedPart
from perceptune.config.substitution import OF_ANY_DATA
from perceptune.data.build_task import task_of
from perceptune.data.choices import choices_of, stored_choices
from perceptune.data.lazy_rows import LazyRow, read_lines
from perceptune.data.media.suffixes import MODALITIES, PassedOver, modality_of, suffix_of, walk
from perceptune.data.recognition.columns import has_question
from perceptune.data.recognition.media_folder import find_folder
from perceptune.data.recognition.task_keys import find_reader
from perceptune.data.records import Record
from perceptune.data.splits import METADATA
from perceptune.data.tasks.base import CAPTION_METRICS, plain
from perceptune.data.tasks.jsonl import record_of
from perceptune.errors import UserError
from perceptune.evaluation.runner import answers_of
from perceptune.models.base import AdaptedModel
from perceptune.types import Sample

_LOOKED_AT = 1000  # files of a folder
SPLIT = "test"  # rows of this split may lack targets


def run_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the options of a run's task about prompts, answers and scoring, which hold for other data, too."""
    given = {} if recipe.task is None else recipe.task.options()
    turns = {"turns": "all"} if given.get("turns") == "all" else {}  # conversations as the run was trained on them
    return {key: given[key] for key in OF_ANY_DATA if given.get(key) is not None} | turns


def needs_recognition(place: str) -> bool:
    """Return whether data has another form than canonical JSON lines or plain media."""
    source = Path(place)
    if "://" in place or not source.exists():
        return True  # an address, a pattern of names, or a mistake
    if source.is_dir():
        return _is_data_set(source)
    name = source.name.removesuffix(".gz")
    if not name.endswith((".jsonl", ".ndjson", ".json")):
        return suffix_of(name) in ("csv", "tsv", "tar", "parquet", "arrow", "xlsx", "txt")
    with plain(source).open("rb") as file:
        for line, (text, _) in enumerate(read_lines(file), 1):
            try:
                record = record_of(LazyRow(0, line, text), source)
            except UserError:  # a document, or a broken line, which becomes an error of its own
                return name.endswith(".json") and text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
            if record is not None:
                return _has_other_keys(source, record)
    return False


def _has_other_keys(source: Path, record: Record) -> bool:
    """Return whether a row has other keys than those of task `jsonl`, or its media lie in another folder."""
    if "prompt" not in record.values and has_question([record.values]):
        return True
    given = [name for key in MODALITIES for _, name in record.listed(key)]
    names = [name for name in given if isinstance(name, str)]
    if not names:
        return not record.values.keys() & {*MODALITIES}
    try:
        return find_folder(names, source, None) is not None
    except UserError:  # they lie nowhere
        return False


def _is_data_set(folder: Path) -> bool:
    """Return whether a folder holds metadata, or files of rows or shards and no media."""
    if any((folder / name).is_file() for name in METADATA):
        return True
    names = [file.name for file in islice(walk(folder, PassedOver()), _LOOKED_AT)]
    is_media = any(modality_of(name) is not None for name in names)
    return not is_media and any(suffix_of(name) in ("tar", "parquet", "arrow") for name in names)


def recognized_rows(
    place: str, prompt: str | None, recipe: Recipe, *, fetch_media: bool = False
) -> Iterator[tuple[int, Sample | UserError]]:
    """Yield the number of each row with its sample, or with the error of an invalid row."""
    # Answers that rows have already are not judged: they may be none of the choices, and lack what a metric needs.
    kept = {key: value for key, value in run_settings(recipe).items() if key not in ("choices", "metric")}
    settings = kept | ({} if prompt is None else {"prompt": prompt})
    if (metric := run_settings(recipe).get("metric")) in CAPTION_METRICS:
        settings["metric"] = metric
    if "{prompt}" not in recipe.text.template:
        settings["allow_empty_prompt"] = True
    if fetch_media:
        settings["fetch_media"] = True
    task = task_of(part_of(place, settings))
    return task.examine(SPLIT if SPLIT in task.splits else task.splits[-1]).rows


def part_of(place: str, settings: Mapping[str, Any]) -> NamedPart:
    """Return the task that reads the data at `place`, with `settings` of a run."""
    form, given = find_reader(place, split=SPLIT, settings=settings)
    fields = leaf("tasks", form.reader).module.TASK.Options.model_fields
    unchecked = {"check_files": False} if "check_files" in fields else {}  # a missing medium is an error of its row
    return NamedPart(name=form.reader, **{**form.options, **given, **unchecked})


def answered(model: AdaptedModel, samples: Sequence[Sample]) -> list[str]:
    """Return the answer to each sample: the most likely of its choices if the run is evaluated so, else generated."""
    own = stored_choices(model.recipe)
    given = [one if one.meta.get("choices") or not own else replace(one, meta={**one.meta, "choices": own})
             for one in samples]  # fmt: skip
    is_ranked = [model.recipe.eval.rank is not None and bool(one.meta.get("choices")) for one in given]
    ranked = [one for one, wanted in zip(given, is_ranked, strict=True) if wanted]
    others = [one for one, wanted in zip(given, is_ranked, strict=True) if not wanted]
    chosen = iter(answers_of(model, ranked, len(ranked)) if ranked else ())
    generated = iter(model.answer(others) if others else ())
    return [next(chosen).raw if wanted else next(generated) for wanted in is_ranked]


def require_choices(model: AdaptedModel, sample: Sample) -> None:
    """Raise `UserError` if a row's own choices, which would be ranked, are not a list of different texts."""
    if model.recipe.eval.rank is not None and sample.meta.get("choices"):
        choices_of(sample)
