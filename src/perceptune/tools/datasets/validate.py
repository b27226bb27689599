"""`perceptune data check`: reads a data set to its end and counts every error; changes nothing."""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perceptune.config.recipe import Recipe, load_recipe, recipe_names
from perceptune.config.registry import leaf
from perceptune.config.schema import EncoderConfig, NamedPart
from perceptune.data.build_task import make_task, task_of
from perceptune.data.recognition.recognize import hub_hint
from perceptune.data.recognition.task_keys import Recognized, recognize_task
from perceptune.data.records import json_type
from perceptune.data.tasks.base import Task, check_split
from perceptune.errors import UserError, nearest
from perceptune.tools.datasets.media_census import MediaCensus
from perceptune.tools.datasets.problems import Problems
from perceptune.tools.datasets.text_census import TextCensus, TokenFormat
from perceptune.types import Sample
from perceptune.utils.paths import hint, local_name
from perceptune.utils.terminal import print_note


@dataclass(frozen=True)
class CheckOptions:
    """Scope of the check, and of the report."""

    decode: bool = False  # media are decoded to their end and loaded as the encoders do, not only opened
    contents: bool = False  # media are compared by their bytes
    tokens: bool = True  # of a recipe: texts are counted in the LM's tokens, too
    shown: int = 5  # errors of each kind in the report
    samples: int = 3  # rows to show, chosen at random


@dataclass(frozen=True)
class Checked:
    """Findings in a form for JSON, and the rows to show, by split."""

    report: dict[str, Any]
    samples: dict[str, list[Sample]]

    @property
    def clean(self) -> bool:
        return not self.report["problems"]


def source_recipe(
    source: str, overrides: Sequence[str] = (), split: str | None = None, *, also: Iterable[str] = (),
    media: str | None = None, reader: str | None = None,
) -> tuple[Recipe, Recognized | None]:  # fmt: skip
    """Return the recipe of a command's SOURCE; for data in place of a recipe, what it was recognised as, too.

    `media` is the folder of the data's media, `reader` its task if that was named. Raises `UserError` with the nearest
    name, including `also`, if SOURCE is neither.
    """
    source = local_name(source)
    is_recipe = source.endswith((".yaml", ".yml")) or source.removeprefix("recipes/") in recipe_names()
    if is_recipe and not Path(source).is_dir():
        return load_recipe(source, overrides), None
    if not Path(source).exists() and not any(sign in source for sign in ("://", "*", "{")):
        close = hint(Path(source)) or nearest(Path(source).name, [*recipe_names(), *also])
        close = close if "choose from" not in close else ""
        raise UserError(f"no file and no recipe `{source}`{hub_hint(source) or close}")
    data = _recognized(source, split or "train", overrides, media, reader)
    print_note(data.line)
    others = [word for word in overrides if not word.startswith("task.")]
    return load_recipe({"name": Path(source).stem or "data", "task": data.task}, others), data


def _recognized(
    source: str, split: str, overrides: Sequence[str], media: str | None, reader: str | None
) -> Recognized:  # fmt: skip
    """Recognise data; lines of JSON that cannot be recognised are read as they are, to report every mistake in them."""
    try:
        return recognize_task(source, split=split, media=media, reader=reader, words=overrides)
    except UserError as error:
        if reader is not None or not re.search(r"\.(jsonl|ndjson)(\.gz)?$", source) or not Path(source).is_file():
            raise
        return replace(recognize_task(source, split=split, media=media, reader="jsonl", words=overrides), doubt=error)


def validate_dataset(
    source: str, overrides: Sequence[str] = (), *, split: str | None = None, options: CheckOptions | None = None,
    media: str | None = None, reader: str | None = None,
) -> Checked:  # fmt: skip
    """Check data or a recipe's data, all splits or one; see `source_recipe`. Raises `UserError` for a wrong call."""
    options = options or CheckOptions()
    recipe, data = source_recipe(source, overrides, split, media=media, reader=reader)
    whole = data is None
    if recipe.task is None:
        make_task(recipe)  # reports what is missing
    assert recipe.task is not None
    task = task_of(_unchecked(recipe.task))
    if split is not None:
        check_split(split, task.splits)
    text = None
    if whole and options.tokens:
        from perceptune.models.build import text_alone

        text = text_alone(recipe)
    checker = _Checker(task, recipe if whole else None, text, options)
    chosen = [split] if split is not None else list(task.splits)
    splits = {name: checker.go_through(name) for name in chosen}
    if data is not None and data.doubt is not None and not checker.problems:  # mistakes in rows would explain it
        checker.problems.add("unsettled", str(data.doubt))
    report = {
        "source": source, "clean": not checker.problems, "problems": checker.problems.as_dict(), "splits": splits,
        "shared_media": checker.shared(),
    }  # fmt: skip
    return Checked(report, checker.drawn)


def _unchecked(part: NamedPart) -> NamedPart:
    """Return the task without its own check of every file, which would stop at the first missing one."""
    options = leaf("tasks", part.name).module.TASK.Options.model_fields
    return part.model_copy(update={"check_files": False}) if "check_files" in options else part


class _Checker:
    """The splits of one task."""

    def __init__(self, task: Task, recipe: Recipe | None, text: TokenFormat | None, options: CheckOptions) -> None:
        self._task, self._recipe, self._text, self._options = task, recipe, text, options
        self.problems = Problems(options.shown)
        self.drawn: dict[str, list[Sample]] = {}
        self._media: dict[str, set[int]] = {}

    def go_through(self, split: str) -> dict[str, Any]:
        """Return the report on one split."""
        how = self._options
        media = MediaCensus(self.problems, decode=how.decode, contents=how.contents, encoder_of=self._encoder_of)
        texts = TextCensus(self.problems, self._task, split, self._text)
        found = self._task.examine(split)
        chance, drawn = random.Random(0), self.drawn.setdefault(split, [])
        rows = bad = 0
        for number, row in found.rows:
            where = f"{found.place} {number}"
            if isinstance(row, UserError):
                bad += 1
                self.problems.add(getattr(row, "kind", "refused"), str(row))
                continue
            rows += 1
            self._require_encoders(where, row)
            self._require_answers(where, row)
            texts.look(number, where, row, has_tokens=self._require_chat(where, row))
            media.look(where, row)
            if len(drawn) < how.samples:
                drawn.append(row)
            elif (place := chance.randrange(rows)) < len(drawn):
                drawn[place] = row
        for later, earlier in texts.repeated_ids():
            self.problems.add("duplicate-id", f"{found.place} {later}: its id is that of {found.place} {earlier}, too")
        self._media[split] = set().union(*media.seen.values())
        again = texts.repeated_rows()
        return {
            **texts.as_dict(), "bad_rows": bad, "form": found.form() if rows else [], "media": media.as_dict(),
            "repeated_rows": {"count": len(again), "first": again[: how.shown]},
            "copied_media": {"count": media.copied, "first": media.copies},
        }  # fmt: skip

    def shared(self) -> dict[str, int]:
        """Count media of the training split that other splits contain, too."""
        train = self._media.get("train", set())
        found = {split: len(train & seen) for split, seen in self._media.items() if split != "train"}
        return {split: count for split, count in found.items() if count}

    def _encoder_of(self, modality: str) -> Any:
        """Return the encoder that loads a modality: the recipe's, or the default one for a file that is checked alone.

        None if the recipe has none.
        """
        from perceptune.models.build import encoder_alone
        from perceptune.models.slots.build import load_encoder_of

        if self._recipe is not None:
            return encoder_alone(self._recipe, modality) if modality in self._recipe.encoders else None
        return load_encoder_of(modality, EncoderConfig(), meta=True)

    def _require_answers(self, where: str, sample: Sample) -> None:
        """Raise unless `answers` of several annotators are a list: a string would count as one answer per letter."""
        answers = sample.meta.get("answers", [])
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            self.problems.add("wrong-type", f"{where}: `answers` is {json_type(answers)}, not a list of strings")

    def _require_encoders(self, where: str, sample: Sample) -> None:
        if self._recipe is None:
            return
        for modality in sample.media:
            config, count = self._recipe.encoders.get(modality), len(sample.list_media(modality))
            if config is None:
                lacking = f"there is no `encoders.{modality}` in the recipe"
                self.problems.add("no-encoder", f"{where}: `{modality}`, but {lacking}")
            elif count > config.max_media:
                allowed = f"`encoders.{modality}.max_media` is {config.max_media}"
                self.problems.add("too-many-media", f"{where}: {count} media of modality {modality}, but {allowed}")

    def _require_chat(self, where: str, sample: Sample) -> bool:
        """Return whether the recipe's text format takes the sample's earlier turns, if it has any."""
        if self._recipe is None or not sample.history or self._recipe.text.is_chat:
            return True
        turns = "earlier turns" if len(sample.history) > 1 else "a system message"
        self.problems.add("needs-chat", f"{where}: it has {turns}, which need `text.template: chat` in the recipe")
        return False
