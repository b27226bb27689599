"""WebDataset shards: offsets of the members of a tar archive, found in one pass and kept in the cache.

Members of one sample are adjacent and share their name up to the first dot (Aizman et al., 2019).
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from perceptune.data import storage
from perceptune.data.media.suffixes import is_hidden
from perceptune.data.records import RowError, utf8
from perceptune.errors import UserError
from perceptune.utils.run_log import progress

_FORMAT = 3  # increase it when the lines of an index change
_THREADS = 16  # more than cores, because they mostly wait for the network
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # sample, dot, part of the sample


class IndexedShard(NamedTuple):
    """An archive and its index: a text file with one JSON object per sample.

    `{"name": "000123", "parts": {"jpg": [offset, size]}, "texts": {"json": "..."}, "unread": {"txt": "not UTF-8"}}`
    """

    address: str
    version: str
    lines: Path


def index(addresses: Sequence[str], texts: Sequence[str]) -> list[IndexedShard]:
    """Return the shards with their indices; the index contains the parts named in `texts` as text.

    A shard is read once, and again only after it changed. Raises `UserError` for an archive that is truncated, damaged
    or compressed, and for one whose samples do not have distinct names.
    """
    with progress(len(addresses), "index shards") as bar, ThreadPoolExecutor(_THREADS) as pool:
        shards = []
        for shard in pool.map(partial(_indexed, texts=texts), addresses):
            shards.append(shard)
            bar.advance()
    return shards


def _indexed(address: str, texts: Sequence[str]) -> IndexedShard:
    size, version = storage.version(address)
    key = json.dumps([_FORMAT, address, sorted(texts)])
    return IndexedShard(address, version, storage.derived(key, version, lambda: _lines(address, size, texts)))


def _lines(address: str, size: int, texts: Sequence[str]) -> Iterator[bytes]:
    """Yield the lines of a shard's index."""
    seen = set()
    with storage.opened(address) as file:
        for name, group in groupby(_members(file, address, size), key=lambda found: found[0]):
            where = f"{address}, sample `{name}`"
            if name in seen:
                raise UserError(f"{where}: its members do not lie side by side; write the archive with --sort=name")
            seen.add(name)
            parts: dict[str, list[int]] = {}
            contents: dict[str, str] = {}
            unread: dict[str, str] = {}  # part -> why it is no text
            for _, part, info in group:
                if part in parts:
                    raise UserError(f"{where}: two members are called `{name}.{part}`")
                parts[part] = [info.offset_data, info.size]
                if part in texts:
                    file.seek(info.offset_data)
                    try:
                        contents[part] = utf8(file.read(info.size), f"{where}, `{part}`")
                    except RowError as error:
                        unread[part] = str(error)
            line: dict[str, Any] = {"name": name, "parts": parts, "texts": contents, "unread": unread}
            yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


def count_samples(shards: Sequence[IndexedShard]) -> int:
    """Return the number of samples of all shards."""
    total = 0
    for shard in shards:
        with shard.lines.open("rb") as file:
            while block := file.read(2**20):
                total += block.count(b"\n")
    return total


def _members(file: BinaryIO, address: str, size: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield sample, part and header of each file of an archive in its order."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                cast(Any, archive).members.clear()  # `tarfile` would keep all headers in memory
                match = _NAME.fullmatch(info.name.removeprefix("./"))
                if match and info.isreg() and not any(map(is_hidden, PurePosixPath(info.name).parts)):
                    if info.issparse():
                        raise UserError(f"{address}#{info.name} is a sparse file: write the archive without --sparse")
                    yield match[1], match[2].lower(), info
            end = archive.offset
    except tarfile.TarError as error:
        raise UserError(f"{address}: {_damage(file, size, error)}") from error
    # `tarfile` treats a damaged or missing header as the end.
    file.seek(end)
    if (block := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
        what = "damaged" if len(block) == tarfile.BLOCKSIZE else "cut off"
        raise UserError(f"{address} is {what}: no member and no end of the archive at byte {end:,} of {size:,}")


def _damage(file: BinaryIO, size: int, error: tarfile.TarError) -> str:
    file.seek(0)
    if file.read(2) == b"\x1f\x8b":
        return "is compressed, so nothing in it can be found without reading it all: store it as a plain tar"
    return f"is no whole tar archive of {size:,} bytes ({error})"
