"""Rows of the data that a run is evaluated on, for the web page: selected once at the start, and only on request."""

import base64
import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from perceptune.data.build_task import make_task
from perceptune.data.media.source import MediaError, content, label
from perceptune.errors import UserError
from perceptune.evaluation.runner import select_subset
from perceptune.serving.limits import MIB, Limits
from perceptune.serving.runs import Runs, ServedRun
from perceptune.types import Medium, Sample

MOST = 24  # rows of a run
_BYTES = 2 * MIB  # per medium: all are sent to a browser together
_DRAWN = 8  # factor of candidate rows, so that not all selected ones have the same answer
_KINDS = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4"}


class Example(NamedTuple):
    """A row that can be sent as a request."""

    prompt: str
    targets: tuple[str, ...]
    media: Mapping[str, str | list[str]]  # by modality, as `data:` URLs; a list if there are several

    def row(self, place: int) -> dict[str, Any]:
        """Return the row as JSON."""
        return {"id": place, "prompt": self.prompt, "targets": list(self.targets), "media": dict(self.media)}


Showing = Callable[[Runs], Mapping[str, Sequence[Example]]]


def load_examples(runs: Runs, number: int, limits: Limits) -> dict[str, list[Example]]:
    """Return `number` rows of each run's evaluated split. Raises `UserError` for a run whose data are not available."""
    if not 0 <= number <= MOST:
        raise UserError(f"--examples: 0 to {MOST}, not {number}")
    return {name: _of(run, number, limits) for name, run in runs.items()} if number else {}


def _of(run: ServedRun, number: int, limits: Limits) -> list[Example]:
    try:
        task = make_task(run.model.recipe)
        rows = select_subset(task, run.model.recipe.eval.split or task.splits[-1], _DRAWN * number)
    except UserError as error:
        raise UserError(f"`{run.name}`: no examples ({error}); leave out --examples") from error
    found = list(islice((one for row in _varied(rows) if (one := _example(row, limits))), number))
    if not found:
        raise UserError(f"`{run.name}`: no example can be shown: media are missing or large; leave out --examples")
    return found


def _varied(rows: Sequence[Sample]) -> list[Sample]:
    """Sort rows with new answers before those with repeated ones."""
    times: Counter[tuple[str, ...]] = Counter()
    turns = []
    for row in rows:
        turns.append(times[row.targets])
        times[row.targets] += 1
    return [row for _, row in sorted(zip(turns, rows, strict=True), key=lambda pair: pair[0])]


def _example(row: Sample, limits: Limits) -> Example | None:
    """Return the example; None for a row whose media cannot be read or are too large to show or send.

    None, too, for a question that follows other turns.
    """
    if row.history:
        return None
    media: dict[str, str | list[str]] = {}
    for kind in row.media:
        shown = [_url(medium, kind, limits) for medium in row.list_media(kind)]
        urls = [url for url in shown if url is not None]
        if len(urls) < len(shown):
            return None
        media[kind] = urls if len(urls) > 1 else urls[0]
    return Example(row.prompt, row.targets, media)


def _url(medium: Medium, kind: str, limits: Limits) -> str | None:
    try:
        data = content(medium)
    except MediaError:
        return None
    if len(data) > min(_BYTES, limits.bytes_of(kind)):
        return None
    return f"data:{_mime(medium, kind)};base64,{base64.b64encode(data).decode()}"


def _mime(medium: Medium, kind: str) -> str:
    """Return the MIME type for a file's name, if it fits the modality: a browser inspects the bytes itself."""
    guessed, _ = mimetypes.guess_type(label(medium))
    # No SVG: it is a document rather than an image, and no encoder reads it.
    fits = guessed is not None and guessed.startswith(f"{kind}/") and "svg" not in guessed
    return guessed if fits and guessed else _KINDS[kind]
