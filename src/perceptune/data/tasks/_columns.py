"""The columns of a row: their names, and lenient reading of values whose meaning is plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from perceptune.data.media.remote_media import RemoteMedia, is_remote
from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record, RowError, short
from perceptune.types import Media
from perceptune.utils.paths import local_name

KEYS = (*MODALITIES, "prompt", "targets", "id")
TARGETS = ("targets", "caption", "captions")  # keys of the targets; the first that exists is used
_CAPTIONS = (*TARGETS, "text")
_PLURALS = {modality: f"{modality}s" for modality in MODALITIES}


class ColumnOptions(BaseModel):
    """The recipe keys for rows whose columns have other names."""

    image_key: str = "image"
    audio_key: str = "audio"
    video_key: str = "video"
    prompt_key: str = "prompt"
    target_key: str | tuple[str, ...] | None = Field(
        None, description="column of targets, or several columns; None = `targets`, else `caption` or `captions`"
    )
    id_key: str = "id"


class Columns:
    """The names of a row's columns."""

    def __init__(self, options: Any = None) -> None:
        """Take the names of `ColumnOptions`; the usual ones without them."""
        given = options if isinstance(options, ColumnOptions) else ColumnOptions()
        targets = () if given.target_key is None else given.target_key
        self.media = {modality: str(getattr(given, f"{modality}_key")) for modality in MODALITIES}
        self.prompt, self.id = given.prompt_key, given.id_key
        self.targets = (targets,) if isinstance(targets, str) else targets  # all are used; empty = first of `TARGETS`
        # Columns with a meaning; all others are the sample's meta.
        self.keys = (*self.media.values(), self.prompt, *(self.targets or TARGETS[:1]), self.id)
        self._settable = options is given  # whether errors name the options
        self._media_keys = frozenset(self.media.values())

    def names(self, captions: bool) -> tuple[str, ...]:
        """Return every name that a column with a meaning may have."""
        return (*self.keys, *(() if self.targets else _targets(captions)[1:]))

    def media_in(self, record: Record) -> Mapping[str, str]:
        """Return the columns of media by modality; `images` replaces `image` if a row has none of them."""
        if not self._media_keys.isdisjoint(record.values):
            return self.media
        found = {key: name for key, name in _PLURALS.items() if self.media[key] == key and name in record.values}
        if not found:
            raise self.lacks(record, [*self.media.values()], "image_key")
        return found

    def targets_in(self, record: Record, captions: bool) -> tuple[str, ...]:
        """Return the columns of a row's targets."""
        if self.targets:
            return self.targets
        names, values = _targets(captions), record.values
        for key in names:
            if values.get(key) is not None:
                return (key,)
        return (next((key for key in names if key in values), names[0]),)

    def prompt_of(self, record: Record, default: str | None, *, allow_empty: bool) -> str:
        """Return the question, or `default` if it is given and the row has none."""
        if default is not None and record.values.get(self.prompt) in (None, ""):
            return default
        if self.prompt not in record.values and self._settable and not allow_empty:
            error = self.lacks(record, [self.prompt], "prompt_key")
            raise RowError(f"{error}; `prompt` is one for all rows, and `metric: CIDEr` needs none", error.kind)
        return record.prompt(self.prompt, allow_empty=allow_empty)

    def require_targets(self, record: Record, captions: bool) -> None:
        """Raise `RowError` if a column of targets does not exist."""
        for key in self.targets:
            if key not in record.values:
                raise self.lacks(record, [key], "target_key")
        if not self.targets and not any(key in record.values for key in _targets(captions)):
            raise self.lacks(record, _targets(captions), "target_key")

    def lacks(self, record: Record, wanted: Sequence[str], option: str) -> RowError:
        """Return the error for a row without a column, which often has another name; `option` can set that."""
        error = record.lacks(wanted)
        advice = f"; a column of another name is given by `{option}`" if self._settable else ""
        return RowError(f"{error}{advice}", error.kind)


def _targets(captions: bool) -> tuple[str, ...]:
    return _CAPTIONS if captions else TARGETS


def id_of(record: Record, default: str, key: str = "id") -> str:
    """Return the row's id."""
    match record.values.get(key):
        case None:
            return default
        case int(value) if not isinstance(value, bool):
            return str(value)
        case float(value):
            raise record.error(f"`{key}` is a number with a point ({value}), not a string or a whole one", "wrong-type")
    if not record.text(key).strip():
        raise record.error(f"`{key}` is empty", "empty-id")
    return record.text(key)


def media_of(
    record: Record, folder: Path, columns: Mapping[str, str] | None = None, remote: RemoteMedia | None = None
) -> dict[str, Media]:
    """Return the row's files by modality; empty if all are null. Addresses are an error without `remote`."""
    media: dict[str, Media] = {}
    for modality, key in (Columns().media_in(record) if columns is None else columns).items():
        found = tuple(_medium(record, place, value, modality, folder, remote) for place, value in record.listed(key))
        if found:
            media[modality] = found if len(found) > 1 else found[0]
    return media


def _medium(
    record: Record, key: str, value: object, modality: str, folder: Path, remote: RemoteMedia | None
) -> Path:  # fmt: skip
    name = local_name(record.check_text(key, value))
    if not name.strip():
        raise record.error(f"`{key}` is empty; write null if the row has none", "empty-medium")
    return remote.place(modality, name) if remote and is_remote(name) else _path(folder, local(record, key, name))


def local(record: Record, key: str, name: str) -> str:
    """Return a name that is not an address. Raises `RowError` for one that is."""
    if "://" in name or name.startswith("data:"):
        advice = " (`--fetch-media`, or `fetch_media: true` of the task, fetches it)" if is_remote(name) else ""
        raise record.error(f"`{key}` is an address, not a file{advice}: {short(name)}", "address")
    return name


@lru_cache(2**14)
def _path(folder: Path, name: str) -> Path:
    """Join a path; cached, because media repeat and creating a path takes as long as reading the rest of a row."""
    return folder / name
