"""Media statistics of a data set: each medium is read once, however many rows use it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from perceptune.data.media.audio import read_audio_header
from perceptune.data.media.remote_media import failure
from perceptune.data.media.source import content, image_size, label, open_image
from perceptune.data.records import short
from perceptune.data.tasks.base import is_file
from perceptune.encoders.base import Encoder
from perceptune.errors import UserError
from perceptune.tools.datasets.problems import Problems
from perceptune.types import Medium, Member, Sample
from perceptune.utils.paths import hint

_MOST_COMPARED = 2_000_000  # contents; 32 bytes each and their names


class MediaCensus:
    """Counts distinct media, opens each of them once, and stores 8 bytes for it and for each of its figures."""

    def __init__(
        self, problems: Problems, *, decode: bool, contents: bool, encoder_of: Callable[[str], Encoder | None]
    ) -> None:
        """Decode images and videos to their end with `decode`, and load media as the encoder does.

        `encoder_of` returns a modality's encoder, if any; `contents` finds equal files.
        """
        self._problems, self._decode, self._contents = problems, decode, contents
        self._encoder_of = cache(encoder_of)
        self.seen: dict[str, set[int]] = {}  # modality -> hashes of the media's locations
        self._rows: dict[str, int] = {}
        self._figures: dict[str, dict[str, array[float]]] = {}
        self._by_content: dict[bytes, str] = {}
        self.copies: list[tuple[str, str]] = []  # the first few media whose bytes equal another's, and that one
        self.copied = 0

    def look(self, where: str, sample: Sample) -> None:
        """Open the media of a row that were not read before."""
        for modality in sample.media:
            seen, own = self.seen.setdefault(modality, set()), sample.list_media(modality)
            self._rows[modality] = self._rows.get(modality, 0) + 1
            for number, medium in enumerate(own, 1):
                name = hash(medium)
                if name not in seen:
                    seen.add(name)
                    self._open(f"{where}: `{modality}`{f' {number}' if len(own) > 1 else ''}", modality, medium)

    def as_dict(self) -> dict[str, Any]:
        """Return for each modality rows, distinct media, and minimum, median and maximum of each figure."""
        return {
            modality: {
                "rows": self._rows[modality], "distinct": len(self.seen[modality]),
                **{name: _spread(values) for name, values in self._figures.get(modality, {}).items()},
            }
            for modality in self.seen
        }  # fmt: skip

    def _open(self, where: str, modality: str, medium: Medium) -> None:
        if isinstance(medium, Path) and not is_file(medium):
            told = failure(medium) or f"there is no file {short(str(medium))}"
            self._problems.add("missing-medium", lambda: f"{where}: {told}{'' if failure(medium) else hint(medium)}")
            return
        try:
            figures = self._look_at(modality, medium)
            if self._contents:
                self._compare(modality, medium)
        except UserError as error:
            self._problems.add("broken-medium", f"{where}: {error}")
            return
        kept = self._figures.setdefault(modality, {})
        for name, value in figures.items():
            kept.setdefault(name, array("d")).append(value)

    def _look_at(self, modality: str, medium: Medium) -> Mapping[str, float]:
        figures = {"bytes": float(_bytes(medium)), **self._figures_of(modality, medium)}
        encoder = self._encoder_of(modality) if self._decode else None
        if encoder is not None:  # an encoder accepts fewer media than the reader, and needs more of them
            encoder.load(medium, label(medium, modality))
        return figures

    def _figures_of(self, modality: str, medium: Medium) -> Mapping[str, float]:
        if modality == "image":
            height, width = image_size(medium)
            if self._decode and self._encoder_of(modality) is None:
                open_image(medium)
            return {"width": width, "height": height}
        if modality == "audio":
            return read_audio_header(medium)._asdict()
        from perceptune.data.media.video import describe_video

        video = describe_video(medium, decode=self._decode)
        found = {"width": video.width, "height": video.height, "frames": video.frames}
        return found if video.seconds is None else {**found, "seconds": video.seconds}

    def _compare(self, modality: str, medium: Medium) -> None:
        if len(self._by_content) >= _MOST_COMPARED:
            return
        digest = hashlib.sha256(content(medium)).digest()
        name = label(medium, modality)
        if (earlier := self._by_content.setdefault(digest, name)) != name:
            self.copied += 1
            self.copies += [(name, earlier)] if len(self.copies) < 5 else []


def _spread(values: array[float]) -> dict[str, float]:
    low, middle, high = np.quantile(np.frombuffer(values), [0, 0.5, 1])
    return {"least": float(low), "median": float(middle), "greatest": float(high)}


def _bytes(medium: Medium) -> int:
    if isinstance(medium, Path):
        return medium.stat().st_size
    return medium.size if isinstance(medium, Member) else len(medium)
