"""Media at http(s) addresses in rows: each is fetched once into perceptune's cache, under a hash of its address."""

import hashlib
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from perceptune._version import __version__
from perceptune.data.media.file_types import HEAD, kind_of
from perceptune.data.media.suffixes import MAX_MIB, modality_of, suffix_of
from perceptune.data.records import short
from perceptune.errors import NotWritableError, UserError
from perceptune.utils import downloads
from perceptune.utils.atomic_io import write_whole
from perceptune.utils.locking import waiting_lock
from perceptune.utils.remote import Remote, RemoteError
from perceptune.utils.run_log import Progress, progress

REMOTE = Remote(None, headers={"User-Agent": f"perceptune/{__version__}"})  # tests replace it
SECONDS = 30.0  # for one medium
_THREADS = 16
_AT_ONCE = 1_000  # addresses that are collected before they are fetched
_SHOWN = 3
_SAFE = "%/:=&?~#+!$,;'@()*[]"  # characters that belong into an address, besides letters and digits
_folders: set[Path] = set()  # folders of fetched media that this process has used
_failures: dict[Path, str] = {}  # place of a medium that could not be fetched -> its address and why


def is_remote(name: str) -> bool:
    """Return whether a name in a row is an http(s) address."""
    return name[:8].lower().startswith(("http://", "https://"))


def failure(path: Path) -> str:
    """Return why the medium with this place in the cache could not be fetched; empty for any other path."""
    return _failures.get(path, "")


def is_fetched(path: Path) -> bool:
    """Return whether a file is a fetched medium in the cache."""
    return path.parent.parent in _folders


class RemoteMedia:
    """Places of remote media in the cache, and their fetching, which is tried once per object."""

    def __init__(self) -> None:
        self._failed: dict[Path, str] = {}
        self._wanted: dict[Path, tuple[str, str]] | None = None  # place -> modality and address, while collecting
        self._is_temporary = False  # whether new files go to a temporary folder, as the cache cannot be written

    def place(self, modality: str, address: str) -> Path:
        """Return where the medium at an address is once it is fetched."""
        name = hashlib.sha256(address.encode()).hexdigest()[:32]
        end = suffix_of(re.split("[?#]", address)[0])
        suffix = f".{end}" if modality_of(f"x.{end}") else ""  # for people; the type is found by content
        below = Path("media", name[:2], f"{name}{suffix}")
        path = downloads.cache_dir() / below
        if self._is_temporary and not path.is_file():
            path = downloads.scratch_dir() / below
        _folders.add(path.parent.parent)
        if self._wanted is not None and path not in self._failed and not path.is_file():
            self._wanted[path] = modality, address
        return path

    def fetch_for(self, rows: Callable[[], Iterable[object]], what: str, most: int | None) -> None:
        """Fetch all media whose `place` is asked for while `rows` are read; continue where an earlier call stopped.

        Raises `UserError` with the first failures if there are more than `most`.
        """
        try:
            self._fetch_all(iter(rows()), what, most)
        except NotWritableError as error:
            if self._is_temporary:
                raise
            print(f"note: {error}; fetched media are kept until this process ends", file=sys.stderr)
            self._is_temporary = True
            self._fetch_all(iter(rows()), what, most)

    def _fetch_all(self, rows: Iterator[object], what: str, most: int | None) -> None:
        before, tried = len(self._failed), 0
        self._wanted = {}
        try:
            with ExitStack() as stack:
                bar: Progress | None = None
                for last in self._portions(rows):
                    if self._wanted:
                        bar = bar or stack.enter_context(progress(0, "fetch media"))
                        tried += len(self._wanted)
                        bar.expect(len(self._wanted))
                        self._failed |= _fetch(self._wanted, bar)
                        self._wanted.clear()
                    failed = [*self._failed.values()][before:]
                    if most is not None and len(failed) > most:
                        of = f"{tried:,}" if last else f"the first {tried:,}"
                        advice = "start again to try them once more, the others are kept"
                        raise UserError(f"{what}: {_told(failed)} (of {of}); {advice}")
        finally:
            self._wanted = None
        if tried:
            failed = [*self._failed.values()][before:]
            told = f"; {_told(failed)}" if failed else ""
            print(f"{what}: {_counted(tried - len(failed))} fetched{told}", file=sys.stderr)

    def _portions(self, rows: Iterator[object]) -> Iterator[bool]:
        """Read rows until enough addresses are collected; yield whether these were the last ones."""
        while True:
            for _ in rows:
                if len(self._wanted or ()) >= _AT_ONCE:
                    yield False
                    break
            else:
                yield True
                return


def _told(failed: list[str]) -> str:
    """Return the number of failures and the first few."""
    more = f"; and {len(failed) - _SHOWN:,} more" if len(failed) > _SHOWN else ""
    return f"{_counted(len(failed))} cannot be fetched: {'; '.join(islice(failed, _SHOWN))}{more}"


def _counted(number: int) -> str:
    return f"{number:,} {'medium' if number == 1 else 'media'}"


def _fetch(wanted: dict[Path, tuple[str, str]], bar: Progress) -> dict[Path, str]:
    """Fetch media, those of each folder one after the other under its lock; return the failures."""
    folders = defaultdict[Path, list[Path]](list)
    for path in wanted:
        folders[path.parent].append(path)
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            done = [pool.submit(_fetch_folder, folder, {path: wanted[path] for path in paths}, bar)
                    for folder, paths in folders.items()]  # fmt: skip
            for one in as_completed(done):
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return {path: _failures[path] for path in wanted if path in _failures}


def _fetch_folder(folder: Path, wanted: dict[Path, tuple[str, str]], bar: Progress) -> None:
    with downloads.clear_os_errors():
        folder.mkdir(parents=True, exist_ok=True)
        # The processes of a training start at the same time: one fetches, the others wait.
        with waiting_lock(folder / ".lock", lambda: None) as alone:
            if alone:  # then no running process writes the incomplete files
                for old in folder.glob(".*.tmp"):
                    old.unlink(missing_ok=True)
            for path, (modality, address) in wanted.items():
                if not path.is_file():
                    try:
                        write_whole(path, [_content(modality, address)])
                    except RemoteError as error:
                        cause = f" ({error.__cause__})" if error.__cause__ else ""
                        _failures[path] = f"{short(address)}: {error.why}{cause}"
                        bar.advance()
                        continue
                _failures.pop(path, None)
                bar.advance()


def _content(modality: str, address: str) -> bytes:
    """Return the bytes at an address. Raises `RemoteError`, also for bytes that are not such a medium."""
    data = REMOTE.fetch(quote(address.strip(), safe=_SAFE), MAX_MIB[modality] * 2**20, SECONDS)
    if not data:
        raise RemoteError("it is empty")
    kind = kind_of(data[:HEAD])
    # A still image is read as a video of one frame.
    if kind is not None and not {modality, *(["image"] if modality == "video" else [])} & {*kind.modalities}:
        raise RemoteError(f"it is {kind.name}")
    return data
