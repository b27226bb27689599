"""The columns of a data set of `datasets` that hold media: found by type or name, never decoded by that library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptune.data.media.file_types import HEAD, kind_of
from perceptune.data.media.remote_media import RemoteMedia, failure, is_remote
from perceptune.data.records import Record, json_type
from perceptune.data.tasks.base import MODALITIES, local, missing
from perceptune.errors import UserError, nearest
from perceptune.types import Media, Medium
from perceptune.utils.paths import local_name

_ABSENT, _BYTES, _FILE, _ADDRESS = range(4)  # what a cell holds; a list of several has the highest of its items
_BATCH = 10_000


def inner(feature: Any) -> Any:
    """Return the type of a list's items, or the type itself."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


class MediaColumns:
    """The columns of media of a split, and which of its rows have some, at a byte per row."""

    def __init__(
        self, data: Any, given: Mapping[str, str | None], where: str, folder: Path | None, remote: RemoteMedia | None
    ) -> None:  # fmt: skip
        """Find the columns, of which `given` names some. Raises `UserError` if there is none, or a choice of several.

        Names of files are relative to `folder`, and addresses are fetched by `remote`.
        """
        self._where, self._features, self._folder, self._remote = where, data.features, folder, remote
        typed = self._typed()
        bare = [name for name, feature in data.features.items() if _holds_bytes(feature)]
        self.columns = self._named(given) | {
            modality: self._only(modality, names) for modality, names in typed.items() if names and not given[modality]
        }
        self.columns = self.columns or self._called(bare) or self._lone(bare, data)
        for name in {name for names in typed.values() for name in names}:
            data = data.cast_column(name, _undecoded(data.features[name]))
        self.rows = data
        self.opaque = sorted({*bare, *(name for names in typed.values() for name in names)})  # columns with bytes
        self._states = {name: _states_of(data, name) for name in self.columns.values()}
        self._counts = {
            name: counts for name in self.columns.values() if (counts := _counts_of(data, name)) is not None
        }

    def require(self, record: Record, index: int, *, check_files: bool) -> None:
        """Raise `RowError` for a row without a medium, or with an address of no use.

        With `check_files` also for a file that does not exist.
        """
        states = {name: states[index] for name, states in self._states.items()}
        for modality, name in self.columns.items():
            if states[name] == _ADDRESS or (states[name] == _FILE and check_files):
                values = record.values if name in record.values else self.rows[index]
                for medium in self._list(record._replace(values=values), modality):
                    if check_files and isinstance(medium, Path) and (problem := missing(medium)):
                        raise record.error(f"cannot read `{name}` {medium}: {problem}", "missing-medium")
        if not any(states.values()):
            names = " and ".join(f"`{name}`" for name in states)
            raise record.error(f"{names} {'is' if len(states) == 1 else 'are'} empty", "no-medium")

    def media(self, record: Record, index: int) -> dict[str, Media]:
        """Return the media of a whole row."""
        present = [modality for modality, name in self.columns.items() if self._states[name][index]]
        found = {modality: self._list(record, modality) for modality in present}
        return {modality: some if len(some) > 1 else some[0] for modality, some in found.items()}

    def counts(self, index: int) -> dict[str, int]:
        """Return the number of media of each modality in a row, which is not read for it."""
        return {
            modality: int(self._counts[name][index]) if name in self._counts else int(self._states[name][index] > 0)
            for modality, name in self.columns.items()
        }

    def with_address(self) -> list[int]:
        """Return the indices of rows with an address in place of a file."""
        found = [states == _ADDRESS for states in self._states.values()]
        return [int(index) for index in np.flatnonzero(np.logical_or.reduce(found))]

    def _list(self, record: Record, modality: str) -> tuple[Medium, ...]:
        """Return the media at the column of a modality; what stands for none is left out of a list of several."""
        column = self.columns[modality]
        value = record.values[column]
        if not isinstance(value, list):
            value = [value]
        filled = [item for item in value if not _is_empty(item)] or value[:1]
        return tuple(self._medium(record, column, modality, item) for item in filled)

    def _medium(self, record: Record, column: str, modality: str, value: Any) -> Medium:
        """Return a medium: its bytes, else its file, or the place of what is fetched."""
        content = _content(record, column, value)
        if isinstance(content, bytes):
            return content
        if self._remote and is_remote(content):
            place = self._remote.place(modality, content)
            if why := failure(place):
                raise record.error(why, "missing-medium")
            return place
        path = local(record, column, content)
        return Path(path) if self._folder is None else self._folder / path

    def _typed(self) -> dict[str, list[str]]:
        """Return modality -> columns of that type."""
        import datasets

        kinds = {"image": datasets.Image, "audio": datasets.Audio, "video": datasets.Video}
        return {
            modality: [name for name, feature in self._features.items() if isinstance(inner(feature), kind)]
            for modality, kind in kinds.items()
        }

    def _named(self, given: Mapping[str, str | None]) -> dict[str, str]:
        found = {modality: name for modality, name in given.items() if name is not None}
        for modality, name in found.items():
            if name not in self._features:
                raise UserError(f"{self._where}: `{modality}_key`: no column `{name}`{nearest(name, self._features)}")
            feature, own = self._features[name], getattr(inner(self._features[name]), "dtype", "")
            if not (_holds_bytes(feature) or "string" in own or any(name in typed for typed in self._typed().values())):
                raise UserError(f"{self._where}: `{modality}_key`: `{name}` holds neither media nor names of files")
        return found

    def _only(self, modality: str, names: list[str]) -> str:
        if len(names) > 1:
            raise UserError(
                f"{self._where}: {' and '.join(names)} could both be the {modality}; choose by `{modality}_key`"
            )
        return names[0]

    def _called(self, bare: Iterable[str]) -> dict[str, str]:
        """Return the columns of bytes or names of files that are called as modalities are, else as several of one."""
        texts = [name for name, feature in self._features.items() if "string" in getattr(inner(feature), "dtype", "")]
        named = {modality: modality for modality in MODALITIES if modality in {*bare, *texts}}
        return named or {modality: f"{modality}s" for modality in MODALITIES if f"{modality}s" in {*bare, *texts}}

    def _lone(self, bare: list[str], data: Any) -> dict[str, str]:
        """Return the only column of bytes with its modality, as its first medium shows."""
        if not bare:
            raise UserError(
                f"{self._where}: no column of images, audio or videos among {', '.join(self._features)}; "
                "name one of file names by `image_key`, `audio_key` or `video_key`"
            )
        states = _states_of(data, bare[0])
        first = int(np.argmax(states == _BYTES)) if len(bare) == 1 and (states == _BYTES).any() else None
        content = None if first is None else _first_content(self._where, data[first][bare[0]], bare[0])
        kind = kind_of(content[:HEAD]) if isinstance(content, bytes) else None
        if kind is None or len(kind.modalities) != 1:
            what = f"; the first holds {kind.name}" if kind else ""
            names = " and ".join(f"`{name}`" for name in bare)
            raise UserError(
                f"{self._where}: {names} hold bytes{what}: choose by `image_key`, `audio_key` or `video_key`"
            )
        return {kind.modalities[0]: bare[0]}


def _holds_bytes(feature: Any) -> bool:
    """Return whether a column holds files as bytes, `{"bytes", "path"}` or a list of these."""
    own = inner(feature)
    if isinstance(own, dict):
        return bool(own) and own.keys() <= {"bytes", "path"}
    return "binary" in getattr(own, "dtype", "")


def _undecoded(feature: Any) -> Any:
    """Return the type of a column of media whose cells stay bytes or paths."""
    import datasets

    own = type(inner(feature))(decode=False)
    return own if inner(feature) is feature else datasets.List(own)


def _states_of(data: Any, name: str) -> NDArray[np.uint8]:
    """Return what each cell of a column holds, from lengths alone: no medium is read."""
    batches = data.select_columns([name]).with_format("arrow").iter(_BATCH)
    found = [_states(chunk) for batch in batches for chunk in batch.column(name).chunks]
    return np.concatenate(found) if found else np.zeros(0, np.uint8)


def _states(cells: Any) -> NDArray[np.uint8]:
    from pyarrow import compute, types

    if _is_list(cells.type):
        return _by_row(np.maximum, _states(cells.flatten()), _sizes(cells))
    if types.is_struct(cells.type):
        fields = [compute.struct_field(cells, [name]) for name in ("bytes", "path") if _has_field(cells.type, name)]
        states = np.zeros(len(cells), np.uint8)
        for field in fields:
            states = np.where(states == _BYTES, states, _states(field))
        return states
    if types.is_null(cells.type):
        return np.zeros(len(cells), np.uint8)
    full = compute.fill_null(compute.greater(compute.binary_length(cells), 0), False)
    states = np.where(full.to_numpy(zero_copy_only=False), _BYTES, _ABSENT).astype(np.uint8)
    if not (types.is_binary(cells.type) or types.is_large_binary(cells.type)):
        states[states == _BYTES] = _FILE
        # RE2 has no negative lookahead.
        remote = compute.match_substring_regex(cells, r"^(data:|([^f]|f[^i]|fi[^l]|fil[^e])\w*://)", ignore_case=True)
        states[compute.fill_null(remote, False).to_numpy(zero_copy_only=False)] = _ADDRESS
    return states


def _counts_of(data: Any, name: str) -> NDArray[np.uint32] | None:
    """Return the number of media in each cell of a column of lists; None for another column."""
    found = []
    for batch in data.select_columns([name]).with_format("arrow").iter(_BATCH):
        for cells in batch.column(name).chunks:
            if not _is_list(cells.type):
                return None
            found.append(_by_row(np.add, (_states(cells.flatten()) > 0).astype(np.uint32), _sizes(cells)))
    return np.concatenate(found) if found else None


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return any(is_kind(kind) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _sizes(cells: Any) -> NDArray[np.int64]:
    from pyarrow import compute

    sizes: NDArray[np.int64] = compute.fill_null(compute.list_value_length(cells), 0).to_numpy(zero_copy_only=False)
    return sizes


def _by_row(combine: np.ufunc, items: NDArray[Any], sizes: NDArray[Any]) -> NDArray[Any]:
    """Return one value for the items of each row; 0 for a row without items."""
    found = np.zeros(len(sizes), items.dtype)
    if len(items):
        filled = sizes > 0
        found[filled] = combine.reduceat(items, (np.cumsum(sizes) - sizes)[filled])
    return found


def _has_field(kind: Any, name: str) -> bool:
    return kind.get_field_index(name) >= 0


def _is_empty(value: Any) -> bool:
    """Return whether an item of a list stands for no medium, as `_states` finds it without reading it."""
    if isinstance(value, dict):
        return not value.get("bytes") and not value.get("path")
    return value is None or value in ("", b"")


def _first_content(where: str, value: Any, column: str) -> bytes | str:
    """Return the content of the first medium in a cell."""
    items = value if isinstance(value, list) else [value]
    filled = next((item for item in items if not _is_empty(item)), value)
    return _content(Record(where, {}, ()), column, filled)


def _content(record: Record, column: str, value: Any) -> bytes | str:
    """Return the bytes of a medium, else its name of a file."""
    if isinstance(value, bytes | str):
        value = {"bytes" if isinstance(value, bytes) else "path": value}
    if not isinstance(value, dict):
        raise record.error(f"`{column}` is {json_type(value)}, neither a medium nor the name of a file", "wrong-type")
    if value.get("bytes"):
        return bytes(value["bytes"])
    if not value.get("path"):
        raise record.error(f"`{column}` has no bytes and no file", "no-medium")
    return local_name(value["path"])
