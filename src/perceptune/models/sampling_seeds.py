"""Sampling seeds of rows, which make a sampled answer independent of its batch."""

from collections.abc import Callable, Sequence
from functools import cache

from perceptune.data.media.source import content
from perceptune.models.text_format import TextFormat
from perceptune.types import Decoding, Medium, Sample
from perceptune.utils.row_store.store import digest_of


def seeds_of(
    text: TextFormat, samples: Sequence[Sample], decoding: Decoding, seeds: Sequence[int] | None = None
) -> list[int] | None:
    """Return sampling seeds that depend only on the seed, question and media; None without sampling."""
    if not decoding.sample:
        return None
    given = seeds or [decoding.seed] * len(samples)
    hashes = cache(lambda medium: digest_of(content(medium)))  # a sample may be given many times, with different seeds
    return [_seed_of(text, sample, seed, hashes) for sample, seed in zip(samples, given, strict=True)]


def _seed_of(text: TextFormat, sample: Sample, seed: int, hash_of: Callable[[Medium], bytes]) -> int:
    parts = [repr((seed, text.prompt_ids(sample))).encode()]
    for modality, medium in sorted(sample.iter_media(), key=lambda pair: pair[0]):
        parts += [modality.encode(), hash_of(medium)]
    return int.from_bytes(digest_of(*parts)[:7], "little")
