"""A task: a data set with its metric."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perceptune.data.answer_cleaning import AnswerCleaning
from perceptune.data.choices import ClosedSet, check_choices
from perceptune.data.metrics import caption
from perceptune.data.metrics.base import Scored
from perceptune.data.records import Record
from perceptune.data.row_groups import RowGroups
from perceptune.data.tasks._scores import CAPTION_METRICS, check_metric, exact_match, score_captions
from perceptune.errors import UserError, nearest
from perceptune.types import Sample
from perceptune.utils.paths import absolute, local_name


class Examined(NamedTuple):
    """All rows of a split, including invalid ones."""

    rows: Iterator[tuple[int, Sample | UserError]]  # number of the line or row, from 1; the sample or its error
    place: str  # prefix of the number, such as `my.jsonl, line`
    form: Callable[[], list[str]] = list  # returns notes on unusual but valid properties of the file


class Task(ABC):
    """Samples in a fixed order, the cleaning of generated text, and scoring. Constructed from `Options`."""

    class Options(BaseModel):
        """The recipe keys of this task."""

        model_config = ConfigDict(extra="forbid")

        @model_validator(mode="before")
        @classmethod
        def _local_names(cls, data: Any) -> Any:
            """Resolve `~/` and `file://` in options that name files."""
            given = dict(data) if isinstance(data, Mapping) else {}
            for key, field in cls.model_fields.items():
                if isinstance(given.get(key), str) and "Path" in str(field.annotation):
                    given[key] = local_name(given[key])
            return given or data

    data_option: ClassVar[str | None] = None  # key of the data's location (`--data`); None = there is none
    splits: tuple[str, ...]
    metric: str  # summary key by which the best checkpoint is selected; higher is better
    lowercase: bool = False  # whether answers are scored and shown in lower case
    first_line: bool = False  # whether only the first line of answers and targets is scored and shown
    keeps_period: bool = False  # whether the period at the end of an answer belongs to it
    weights: Mapping[str, float] = MappingProxyType({})  # sampling weight of each part of a mixture

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @classmethod
    def data_keys(cls, place: str, split: str | None = None) -> dict[str, str]:
        """Return the recipe keys for reading the data at `place`, for the evaluation of `split` if it is given.

        Requires a `data_option`.
        """
        return {str(cls.data_option): place}

    @abstractmethod
    def samples(self, split: str) -> Sequence[Sample]:
        """Return every sample of a split in a fixed order. Raises `UserError` for an unknown split."""

    def read_from(self, split: str) -> frozenset[str]:
        """Return identifiers of a split's sources, equal in all tasks that read the same source; empty = unknown."""
        return frozenset()

    def examine(self, split: str) -> Examined:
        """Read a split as `samples` does, but continue after an invalid row if the reader can."""
        check_split(split, self.splits)
        return Examined(self._examined(split), f"split `{split}`, row", partial(self.form, split))

    def form(self, split: str) -> list[str]:
        """Return notes on unusual but valid properties of the rows that were read."""
        return []

    def _read(self, split: str) -> Sequence[Sample]:
        """Read samples for `examine`, without printing the notes, which it reports itself."""
        return self.samples(split)

    def _examined(self, split: str) -> Iterator[tuple[int, Sample | UserError]]:
        number = 0
        try:
            for number, sample in enumerate(self._read(split), 1):
                yield number, sample
        except UserError as error:
            yield number + 1, error

    @abstractmethod
    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """Compute values over all samples and for each. Predictions may be cleaned or raw."""

    def part_of(self, sample: Sample) -> str:
        """Return the key of `weights` for a training sample. Only for a task with weights."""
        raise NotImplementedError

    @property
    def cleaning(self) -> AnswerCleaning:
        """Rule that extracts the answer from a generated text."""
        return AnswerCleaning(self.lowercase, self.first_line, self.keeps_period)

    def clean(self, text: str) -> str:
        """Extract the answer from a generated text."""
        return self.cleaning(text)


class GivenFiles(Task):
    """A task whose splits are those of the options `train`, `validation` and `test` that are set.

    Answers are scored by exact match, captions by caption metrics, as `metric` selects; captions need no prompt.
    """

    class Options(Task.Options):
        """Options for reading and scoring answers. A reader adds its splits."""

        metric: str = Field("accuracy", description="metric of the task; `CIDEr` for captions, which need no prompt")
        rouge: bool = Field(False, description="also report ROUGE-1 and ROUGE-L of captions, F1 and recall")
        metric_tokenizer: caption.TokenizerName | None = Field(
            None,
            description="tokenizer of the caption metrics: `ptb`, `characters` for scripts without blanks, or `none`"
            " (split at spaces); None = `characters` or `ptb`, by the script of most captions",
        )
        lowercase: bool = False
        first_line: bool = Field(False, description="score only the first line of answers and targets")
        parse_lists: bool = Field(
            True, description="read a list written as text, such as `['a cup', 'cup']`, as several targets"
        )
        group_rows: bool = Field(
            True, description="of captions: rows with the same media and prompt are one sample with all their captions"
        )
        allow_empty_prompt: bool = Field(False, description="allow empty prompts, if the template holds all the text")
        choices: Annotated[tuple[str, ...] | None, BeforeValidator(check_choices)] = Field(
            None, description="the closed set of answers, such as the names of classes; a target outside it is an error"
        )

        @model_validator(mode="after")
        def _has_captions(self) -> Self:
            captions = self.metric in CAPTION_METRICS
            for key in ("rouge", "metric_tokenizer"):
                if getattr(self, key) and not captions:
                    raise ValueError(f"`{key}` is for captions: set `metric` to one of {', '.join(CAPTION_METRICS)}")
            if self.choices and captions:
                raise ValueError(f"`choices` is a closed set of answers, and `metric: {self.metric}` is for captions")
            return self

    data_option = "train"

    @classmethod
    def data_keys(cls, place: str, split: str | None = None) -> dict[str, str]:
        keys = super().data_keys(place, split)
        return {**keys, split: place} if split in ("validation", "test") else keys

    def __init__(self, options: Any) -> None:
        given = {split: getattr(options, split) for split in ("train", "validation", "test")}
        self._given = {split: place for split, place in given.items() if place is not None}
        self._options = options
        self.splits = tuple(self._given)
        self.metric = options.metric
        self.lowercase, self.first_line = options.lowercase, options.first_line
        self.captions = self.keeps_period = options.metric in CAPTION_METRICS
        self._groups: dict[str, RowGroups] = {}  # of the splits that were read, if rows are grouped
        self._first_list = ""  # first location of a list written as text that was read as several targets
        self.may_lack_prompt = self.captions or options.allow_empty_prompt
        self._closed = None if options.choices is None else ClosedSet(options.choices, self.clean)

    def samples(self, split: str) -> Sequence[Sample]:
        """Return the samples of a split: its rows, of which those of captions are grouped by their media."""
        is_first = split not in self._groups
        rows = self._read(split)
        groups = self._groups.get(split)
        if groups is None:
            return rows
        if is_first and (note := groups.note()):
            print(f"{split}: {note}", file=sys.stderr)
        return groups.merged(rows)

    def _read(self, split: str) -> Sequence[Sample]:
        """Return every row of a split as a sample. A leaf defines this, or `samples` if it never groups rows."""
        if type(self).samples is GivenFiles.samples:
            raise NotImplementedError(type(self).__name__)
        return self.samples(split)

    def examine(self, split: str) -> Examined:
        found = super().examine(split)
        return found._replace(rows=self._grouping(found.rows, split))

    def _grouping(self, rows: Iterator[tuple[int, Sample | UserError]], split: str) -> Iterator[tuple[int, Any]]:
        """Yield rows, and count the groups of the valid ones for `form`."""
        groups = self._new_groups(split)
        for number, row in rows:
            if groups is not None and isinstance(row, Sample):
                groups.add(row)
            yield number, row
        if groups is not None:
            self._groups[split] = groups

    def _new_groups(self, split: str) -> RowGroups | None:
        """Return the groups of a split that is about to be read; None if rows are not grouped."""
        if not self.captions or not self._options.group_rows:
            return None
        self._groups[split] = RowGroups()
        return self._groups[split]

    def targets_of(self, record: Record, keys: Sequence[str], split: str) -> tuple[str, ...]:
        """Return the row's targets, which only a test split may lack."""
        parses = self._options.parse_lists
        found = record.targets(keys, self.clean, needed=split != "test", parse_lists=parses, numbers=True)
        if parses and not self._first_list:
            given: Any = next((value for key in keys if (value := record.values.get(key)) is not None), [])
            texts = given if isinstance(given, list) else [given]
            if [*found] != texts and any(isinstance(text, str) and text not in found for text in texts):
                self._first_list = record.where
        if self._closed is not None:
            self._closed.require(record, found)
        return found

    def with_choices(self, record: Record, meta: dict[str, Any]) -> dict[str, Any]:
        """Return a row's meta, to which a closed set adds its `choices` unless the row has its own."""
        return meta if self._closed is None else {**meta, "choices": self._closed.of(record)}

    def form(self, split: str) -> list[str]:
        groups = self._groups.get(split)
        grouped = groups.note() if groups is not None else ""
        listed = f"lists written as text are read as several targets, first in {self._first_list}"
        return [*([listed] if self._first_list else []), *([grouped] if grouped else []), *super().form(split)]

    def read_from(self, split: str) -> frozenset[str]:
        return frozenset([absolute(str(self._given[split]))])

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """Compute `accuracy`, and `accuracy_<answer_type>` for each type among the samples, or caption metrics.

        With `choices` also `macro_f1` and the table `confusion`.
        """
        if self.captions:
            options = caption.Options(tokenizer=self._options.metric_tokenizer)
            return score_captions(self, predictions, samples, options, with_rouge=self._options.rouge)
        return exact_match(self, predictions, samples, in_classes=self._closed is not None)

    def _check_metric(self, split: str, answer_types: Iterable[str]) -> None:
        """Raise `UserError` if the split that is evaluated during training does not give the metric."""
        if not self.captions and split == ("validation" if "validation" in self.splits else self.splits[-1]):
            more = [] if self._closed is None else ["macro_f1"]
            check_metric(str(self._given[split]), self.metric, answer_types, more)


def check_split(split: str, splits: Sequence[str]) -> None:
    """Raise `UserError` with the nearest split if `split` does not exist."""
    if split not in splits:
        raise UserError(f"unknown split `{split}`{nearest(split, splits)}")
