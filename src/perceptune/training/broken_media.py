"""Handling of broken or missing media in training: they are skipped, up to a limit."""

import json
from collections.abc import Sequence
from pathlib import Path

from perceptune.data.media.source import MediaError
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.training.checkpoints import BAD_MEDIA
from perceptune.training.training_set import name_of
from perceptune.types import Medium, Sample
from perceptune.utils.atomic_io import write_text
from perceptune.utils.distributed import World


class TooManyBrokenError(Exception):
    """More than `train.max_bad_media`; raised so that the findings of all processes are reported together."""


class BrokenMedia:
    """The broken media found so far; a sample is `in` it if one of its media is.

    `reasons` maps each to its error; it is part of a checkpoint, so a resumed run skips the same media as an
    uninterrupted one.
    """

    def __init__(self, model: AdaptedModel, run: Path, world: World) -> None:
        self.model, self.world, self.limit = model, world, model.recipe.train.max_bad_media
        self.reasons: dict[str, str] = {}
        self.found: dict[str, tuple[str, str]] = {}  # since the last count, by this process: sample and reason
        self.listed = run / BAD_MEDIA

    def __contains__(self, sample: Sample) -> bool:
        return bool(self.reasons) and any(name_of(medium) in self.reasons for _, medium in sample.iter_media())

    def is_readable(self, sample: Sample, view_seeds: Sequence[int] | None = None) -> bool:
        """Return whether all media of a sample can be encoded; note the first that cannot."""
        for modality, medium in sample.iter_media():
            try:
                self.model.encode([Sample(sample.id, {modality: medium}, sample.prompt)], view_seeds)
            except MediaError as error:
                self._note(sample, medium, error)
                return False
        return True

    def give_up_on(self, sample: Sample, medium: Medium, error: MediaError) -> None:
        """Note a broken medium. Raises `TooManyBrokenError` as soon as there are too many of them."""
        self._note(sample, medium, error)
        if len(self.reasons) > self.limit:
            raise TooManyBrokenError

    def sync(self) -> None:
        """Count what any process has found since the last call. All processes must call it."""
        parts = self.world.all_gather(self.found)
        self.found = {medium: told for part in parts for medium, told in part.items()}
        with self.world.same_on_all_ranks():
            self.count()

    def count(self) -> None:
        """List broken media. Raises `UserError` when there are more than `train.max_bad_media`."""
        found, self.found = self.found, {}
        if not found:
            return
        self.reasons |= {medium: reason for medium, (_, reason) in found.items()}
        if self.world.is_main:
            rows = [json.dumps({"medium": name, "error": why}) for name, why in self.reasons.items()]
            write_text(self.listed, "".join(f"{row}\n" for row in rows))
        if len(self.reasons) > self.limit:
            sample, reason = next(iter(found.values()))
            raise UserError(
                f"sample `{sample}`: {reason}; {len(self.reasons)} broken so far, "
                f"`train.max_bad_media` allows {self.limit} (all of them in {self.listed})"
            )

    def _note(self, sample: Sample, medium: Medium, error: MediaError) -> None:
        self.reasons[name_of(medium)] = str(error)
        self.found[name_of(medium)] = sample.id, str(error)
