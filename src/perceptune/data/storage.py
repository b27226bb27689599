"""Files by path or by address (`s3://`, `gs://`, `hf://` and others of fsspec): globbing, versions, byte ranges.

Files derived from others are kept in the cache and reused until their source changes.
"""

import difflib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.core import split_protocol, url_to_fs
from fsspec.registry import known_implementations

from perceptune.data.media.suffixes import is_hidden
from perceptune.errors import NotWritableError, UserError
from perceptune.types import Member
from perceptune.utils import downloads
from perceptune.utils.atomic_io import write_whole
from perceptune.utils.locking import waiting_lock
from perceptune.utils.paths import given_path, hint

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
# Names under which services report the version of a remote file.
_TAGS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "last_modified", "mtime", "created")
# Read-ahead size. At the usual 50 ms and 50 MB/s a request costs as much as 2.5 MB of data.
_BLOCK = 4 * 2**20
_MAX_NAMES = 20_000  # names compared when a file is missing


def expand(pattern: str) -> list[str]:
    """Expand a pattern to absolute paths or addresses: braces as in a shell, then `*`, `?` and `[...]`.

    A name without these is returned even if it does not exist. Raises `UserError` for a pattern that matches no file.
    """
    return list(dict.fromkeys(address for name in _braces(pattern) for address in _glob(name)))


def files_in(address: str, suffix: str) -> list[str] | None:
    """Return the files with this suffix in a folder, sorted, without hidden ones; None if the address is not a folder.

    An address of the web is a folder only if it ends with a slash, because looking would fetch a whole file.
    """
    if is_local(address):
        folder = given_path(address).absolute()
        found = map(str, folder.iterdir()) if folder.is_dir() else None
    elif (address.startswith("http") and not address.endswith("/")) or re.search(r"[*?\[{]", address):
        return None
    else:
        files, path = _filesystem(address)
        with _clear_errors(address):
            found = map(files.unstrip_protocol, files.ls(path, detail=False)) if files.isdir(path) else None
    if found is None:
        return None
    return sorted(name for name in found if name.endswith(suffix) and not is_hidden(name.rpartition("/")[2]))


def is_local(address: str) -> bool:
    """Return whether an address is a path of this machine."""
    return split_protocol(address)[0] in (None, "file", "local")


def local_path(given: str, option: str) -> Path:
    """Return the path of a file that an option names. Raises `UserError` for an address of another machine."""
    if not is_local(given):
        raise UserError(f"{option}: `{given}` is an address, not a file of this machine: fetch it first")
    return given_path(given)


def version(address: str) -> tuple[int, str]:
    """Return the size in bytes and a tag that changes with the content. Raises `UserError` if it is not a file."""
    with _clear_errors(address):
        if is_local(address):
            found = Path(address).stat()
            if stat.S_ISDIR(found.st_mode):
                raise UserError(f"cannot read {address}: it is a folder")
            return found.st_size, _local_version(found)
        files, path = _filesystem(address)
        info = files.info(path)
        if info["type"] == "directory":
            raise UserError(f"cannot read {address}: it is a folder")
        tag = next((str(info[key]) for key in _TAGS if info.get(key)), None) or files.ukey(path)
        return int(info["size"]), f"{info['size']}-{tag}"


@contextmanager
def opened(address: str) -> Iterator[BinaryIO]:
    """Open a file for sequential reading, which may skip parts."""
    with _clear_errors(address):
        if is_local(address):
            with Path(address).open("rb") as file:
                yield file
        else:
            files, path = _filesystem(address)
            with files.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as file:
                yield cast(BinaryIO, file)


def read(member: Member) -> bytes:
    """Read the bytes of a member. Raises `UserError` if its archive changed since it was indexed or is unreachable."""
    with _clear_errors(member.shard):
        if is_local(member.shard):
            with Path(member.shard).open("rb") as file:
                if _local_version(os.fstat(file.fileno())) != member.version:
                    raise _changed(member)
                file.seek(member.offset)
                data = file.read(member.size)
        else:
            files, path = _filesystem(member.shard)
            data = files.cat_file(path, start=member.offset, end=member.offset + member.size)
    if len(data) != member.size:
        raise _changed(member)
    return bytes(data)


def derived(source: str, version: str, chunks: Callable[[], Iterable[bytes]]) -> Path:
    """Return a file in the cache with the content `chunks`, written unless it exists for this version of the source.

    `source` identifies the source and the conversion; `chunks` raises `UserError` if the source cannot be read. If the
    cache cannot be written, the file is temporary and removed when the process exits. Raises `UserError` for a full
    disk.
    """
    name = _digest(source)
    try:
        return _derived_in(downloads.cache_dir() / "index", name, _digest(version), chunks)
    except NotWritableError:  # the feature cache, which is in the same folder, prints a note if it matters
        return _derived_in(downloads.scratch_dir() / "index", name, _digest(version), chunks)


def store(data: bytes) -> Path:
    """Return a file in the cache with these bytes, named after their hash; temporary as in `derived`."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        return _store_in(downloads.cache_dir(), digest, data)
    except NotWritableError:
        return _store_in(downloads.scratch_dir(), digest, data)


def _store_in(cache: Path, digest: str, data: bytes) -> Path:
    path = cache / "index" / "media" / digest[:2] / digest  # removed with the rows in `index` that name it
    with downloads.clear_os_errors():
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, [data])
    return path


def _derived_in(folder: Path, name: str, version: str, chunks: Callable[[], Iterable[bytes]]) -> Path:
    path = folder / f"{name}-{version}"
    with downloads.clear_os_errors():
        if path.is_file():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        # The processes of a training start at the same time: one builds the file, the others wait.
        with waiting_lock(folder / f".{name}.lock", lambda: None) as alone:
            if not path.is_file():
                if alone:  # then no running process writes the incomplete or earlier files
                    for old in (*folder.glob(f".{name}-*.tmp"), *folder.glob(f"{name}-*")):
                        old.unlink(missing_ok=True)
                write_whole(path, chunks())
    return path


def _braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    first, last, names = match.groups()
    if names is None:
        # Numbers with a leading zero are padded to the same width.
        width = max(len(first), len(last)) if any(len(n) > 1 and n[0] == "0" for n in (first, last)) else 0
        step = 1 if int(first) <= int(last) else -1
        parts: Iterable[str] = (f"{number:0{width}}" for number in range(int(first), int(last) + step, step))
    else:
        parts = names.split(",")
    for part in parts:
        yield from _braces(pattern[: match.start()] + part + pattern[match.end() :])


def _glob(pattern: str) -> list[str]:
    files, path = _filesystem(pattern)
    if not re.search(r"[*?\[]", pattern):
        return [path if is_local(pattern) else pattern]
    with _clear_errors(pattern):
        names = sorted(files.glob(path))
    if not names:
        raise UserError(f"no file fits {pattern}{_neighbours(files, path)}")
    return [name if is_local(pattern) else files.unstrip_protocol(name) for name in names]


def _filesystem(address: str) -> tuple[Any, str]:
    """Return the file system of an address (cached per thread by fsspec) and the path on it."""
    protocol = split_protocol(address)[0]
    try:
        files, path = url_to_fs(address)
    except ImportError as error:
        package = known_implementations.get(protocol or "", {}).get("class", "fsspec").split(".")[0]
        needed = f"the package `{package}`: run `pip install {package}`" if package != "fsspec" else f"more: {error}"
        raise UserError(f"cannot read {address}: `{protocol}://` needs {needed}") from error
    except ValueError as error:
        raise UserError(f"cannot read {address}: {error}") from error
    return files, path


@contextmanager
def _clear_errors(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        cause = hint(Path(address)) if is_local(address) else ""
        near = cause if cause and "did you mean" not in cause else _neighbours(*_filesystem(address))
        raise UserError(f"there is no {address}{near}") from error
    except OSError as error:  # fsspec's file systems convert errors of the services to OSError
        raise UserError(f"cannot read {address}: {error.strerror or error}") from error


def _neighbours(files: Any, path: str) -> str:
    """Return a hint with the names in a path's folder that are most similar to its own."""
    folder, _, name = path.rpartition("/")
    names: list[str] = []
    with suppress(OSError):
        names = [found.rstrip("/").rpartition("/")[2] for found in islice(files.ls(folder, detail=False), _MAX_NAMES)]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    if not close:
        return f": {folder} is no folder or an empty one"
    return f"; the nearest names in {folder} are {', '.join(f'`{found}`' for found in close)}"


def _changed(member: Member) -> UserError:
    return UserError(f"{member}: its archive was changed after it was indexed: start again")


def _local_version(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
