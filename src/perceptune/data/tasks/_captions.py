"""Captions of media: one caption per training sample, scored against all captions of a medium."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from perceptune.data.metrics import caption
from perceptune.data.metrics.base import Scored
from perceptune.data.records import Record
from perceptune.data.tasks._scores import score_captions
from perceptune.data.tasks._sets import TRAIN, MediaSet
from perceptune.types import Sample


class Captioned(NamedTuple):
    """A row: a medium with its captions. Several rows may have the same medium."""

    record: Record
    id: str  # of the medium
    media: Mapping[str, Path]
    captions: tuple[str, ...]
    meta: Mapping[str, Any] = MappingProxyType({})


class CaptionSet(MediaSet):
    """Captions: in split `train` one sample per caption, in others one per medium with all captions as targets."""

    class Options(MediaSet.Options):
        """Options of every published set, and those of captions."""

        prompt: str = Field("", description="prompt of every sample; usually in the template instead")
        skip_empty: bool = Field(False, description="skip captions without text instead of refusing them")

        metric_tokenizer: caption.TokenizerName = Field(
            "ptb",
            description="tokenizer of the caption metrics; `characters` for scripts without blanks; `none` = split at"
            " spaces, as in PETAL's code",
        )
        rouge: bool = Field(False, description="also report ROUGE-1 and ROUGE-L, F1 and recall")
        metric_df: Path | None = Field(
            None,
            description="JSONL file with the references for CIDEr's document frequencies; None = the evaluated ones",
        )

    metric = "CIDEr"
    keeps_period = True
    one_row_a_medium: ClassVar[bool] = True  # whether two rows with the same medium are an error

    @abstractmethod
    def rows(self, split: str) -> Iterator[Captioned]:
        """Yield the rows of a split."""

    def captions(self, split: str, *rows: Record, keys: Sequence[str] = ("caption",)) -> tuple[str, ...]:
        """Return the captions of all rows, at the first of `keys` that exists; a split `test` may have none."""
        return tuple(text for row in rows for text in self._captions(row, keys, split))

    def _captions(self, record: Record, keys: Sequence[str], split: str) -> tuple[str, ...]:
        key = next((key for key in keys if record.values.get(key) is not None), None)
        if self._options.skip_empty and key is not None:
            value = record.values[key]
            texts = value if isinstance(value, list) else [value]
            full = [text for text in texts if not isinstance(text, str) or self.clean(text).strip(".")]
            if not full:
                return ()
            record = record._replace(values={**record.values, key: full})
        return tuple(text.strip() for text in record.targets(keys, self.clean, needed=split != "test"))

    def entries(self, split: str) -> Iterator[tuple[Record, Sample]]:
        for row in self._media_of(split):
            if split != TRAIN:
                yield row.record, Sample(row.id, row.media, self._options.prompt, row.captions, row.meta)
                continue
            for number, text in enumerate(row.captions):
                yield row.record, Sample(f"{row.id}#{number}", row.media, self._options.prompt, (text,), row.meta)

    def _media_of(self, split: str) -> Iterator[Captioned]:
        """Yield one row per medium, with all its captions."""
        rows = (row for row in self.rows(split) if row.captions or split == "test")
        if self.one_row_a_medium:
            yield from rows
            return
        found: dict[str, Captioned] = {}
        for row in rows:
            earlier = found.setdefault(row.id, row)
            if earlier is not row:
                found[row.id] = earlier._replace(captions=(*earlier.captions, *row.captions))
        yield from found.values()

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        """Compute the values of `metrics/caption.py` against all captions of each medium."""
        df = {} if self._options.metric_df is None else {"df": str(self._options.metric_df)}
        options = caption.Options(tokenizer=self._options.metric_tokenizer, **df)
        return score_captions(self, predictions, samples, options, with_rouge=self._options.rouge)
