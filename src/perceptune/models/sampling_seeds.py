"""Sampling seeds of rows, which make a sampled answer independent of its batch."""

from collections.abc import Callable, Sequence
from functools import cache

from perceptune.data.media.source import content
from perceptune.models.text_format import TextFormat
from perceptune.types import Decoding, Medium, Sample
from perceptune.utils.row_store.store import digest_of


def seeds_of(
    text: TextFormat, samples: Sequence[Sample], decoding: Decoding, seeds: Sequence[int] | None = None, each: int = 1
) -> list[int] | None:
    """Return sampling seeds that depend only on the seed, question and media; None without sampling.

    There are `each` of a sample, for as many given `seeds`; else those from `decoding.seed` on.
    """
    if not decoding.sample:
        return None
    given = iter(seeds or decoding.seeds(len(samples), each))
    hash_of = cache(lambda medium: digest_of(content(medium)))
    return [seed for sample in samples for seed in _seeds_of(text, sample, [next(given) for _ in range(each)], hash_of)]


def _seeds_of(text: TextFormat, sample: Sample, seeds: Sequence[int], hash_of: Callable[[Medium], bytes]) -> list[int]:
    ids, parts = text.prompt_ids(sample), list[bytes]()
    for modality, medium in sorted(sample.iter_media(), key=lambda pair: pair[0]):
        parts += [modality.encode(), hash_of(medium)]
    return [int.from_bytes(digest_of(repr((seed, ids)).encode(), *parts)[:7], "little") for seed in seeds]
