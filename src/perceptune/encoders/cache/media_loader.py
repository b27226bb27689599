"""Reading and decoding of media for an encoder, a few groups ahead of it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import Tensor

from perceptune.data.media.source import MediaError, content, identity, label
from perceptune.encoders.base import Encoder
from perceptune.types import Medium
from perceptune.utils.row_store.store import digest_of

AHEAD = 2  # number of groups that are decoded while one is encoded
Group = TypeVar("Group")
Result = TypeVar("Result")


class MediaView(NamedTuple):
    """A medium and the view of it to encode."""

    medium: Medium
    view: int = 0  # 0: plain; else the number of an augmented view


@dataclass
class LoadedMedia:
    """One medium of a group, read and decoded for the encoder."""

    item: MediaView
    identity: str = ""
    digest: bytes = b""  # hash of its content
    key: bytes = b""  # of its row
    data: bytes = b""
    pixels: Tensor | None = None  # None: broken, or not needed
    error: MediaError | None = None


class MediaLoader:
    """A loader that reads and decodes media for an encoder.

    `key_of` returns the key of a row; `missing` returns the keys without a row and is called from threads.
    """

    def __init__(
        self, encoder: Encoder, key_of: Callable[[LoadedMedia], bytes],
        missing: Callable[[Sequence[bytes]], list[bytes]],
    ) -> None:  # fmt: skip
        self.encoder, self.key_of, self.missing = encoder, key_of, missing
        self.decoded: Mapping[Medium, Tensor] = {}  # plain media that the caller has decoded by `encoder.load`

    def load(self, group: Sequence[MediaView]) -> list[LoadedMedia]:
        """Load a group; decode all of it if an intact medium has no row, because its bits depend on the others."""
        loaded = [self._read(item) for item in group]
        absent = set(self.missing([one.key for one in loaded if one.error is None]))
        for one in loaded:
            if one.key in absent:
                self._decode(one)
        if any(one.pixels is not None for one in loaded):
            for one in loaded:
                if one.key not in absent:
                    self._decode(one)
        for one in loaded:
            one.data = b""
        return loaded

    def _read(self, item: MediaView) -> LoadedMedia:
        one = LoadedMedia(item, identity(item.medium))
        try:
            one.data = content(item.medium)
        except MediaError as error:
            one.error = error
            return one
        one.digest = digest_of(one.data)
        one.key = self.key_of(one)
        return one

    def _decode(self, one: LoadedMedia) -> None:
        if one.error is not None:
            return
        if not one.item.view and one.item.medium in self.decoded:
            one.pixels = self.decoded[one.item.medium]
            return
        seed = one.digest + one.item.view.to_bytes(4, "little") if one.item.view else None
        try:
            # Decode the bytes that were hashed, because the file may have changed since.
            one.pixels = self.encoder.load(one.data, label(one.item.medium, self.encoder.modality), seed)
        except MediaError as error:
            one.error = error


def prefetched_map(groups: Sequence[Group], load: Callable[[Group], Result]) -> Iterator[Result]:
    """Yield `load` of each group in order; threads load the next groups while the caller works."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for group in groups:
                waiting.append(pool.submit(load, group))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
