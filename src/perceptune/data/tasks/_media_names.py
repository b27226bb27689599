"""Media in rows of conversations: names of files, objects that hold one, lists of them, and base64 data."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from perceptune.data import storage
from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record, json_type, short

# Keys of an object with the name of a file or the data.
_NAMES = ("path", "url", "file_name", "filename", "source", *MODALITIES, *(f"{kind}_url" for kind in MODALITIES))
_DATA = ("bytes", "data", "base64")
_ADDRESS = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
_ABSENT: tuple[object, ...] = (None, "", [])


def names_of(record: Record, key: str, value: object) -> list[str]:
    """Return the files at `key`: a name, an object with one, or a list of these; data is stored in the cache.

    null, an empty text and an object of nulls stand for no file. Raises `RowError` for anything else.
    """
    listed = isinstance(value, list)
    items = enumerate(value) if isinstance(value, list) else [(0, value)]
    named = (_name(record, f"{key}[{index}]" if listed else key, item) for index, item in items)
    return [name for name in named if name]


def _name(record: Record, key: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, dict):
        return _name_in(record, key, value)
    if not isinstance(value, str):
        raise record.error(f"`{key}` is {json_type(value)}, not the name of a file", "wrong-type")
    name = record.check_text(key, value)
    address = _ADDRESS.match(name)
    if address is None:
        return name
    if not address[1].rstrip().lower().endswith(";base64"):
        raise record.error(f"`{key}`: a data address is data:TYPE;base64,DATA, not {short(name, 40)}")
    return _stored(record, key, name[address.end() :])


def _name_in(record: Record, key: str, value: Mapping[str, Any]) -> str | None:
    """Return the file of an object. Its bytes go before its path, which `datasets` writes as the original name only."""
    for part in (*_DATA, *_NAMES):
        found = value.get(part)
        if found in _ABSENT:
            continue
        if part in _DATA:
            return _stored(record, f"{key}.{part}", record.check_text(f"{key}.{part}", found))
        return _name(record, f"{key}.{part}", found)
    if any(item is not None and item != "" for item in value.values()):
        found = ", ".join(f"`{part}`" for part in value)
        raise record.error(f"`{key}` is an object without `path`, `url` or `bytes`; it has {found}", "missing-key")
    return None


def _stored(record: Record, key: str, text: str) -> str:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise record.error(f"`{key}`: {short(text, 40)!r} is not base64")
    return str(storage.store(data))
