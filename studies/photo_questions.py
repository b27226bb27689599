"""Questions about photos, made by rules from five people's captions, that cannot be answered from their wording.

An answer is what at least three captions name while nothing else of its kind is named by more than one. Where one
answer is more frequent than all others it is thinned to the second, and of each thing asked about, half the photos have
it: the most that can be had blindly is about a quarter of the open questions and half of the others.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml


class Asked(NamedTuple):
    """One question about one photo."""

    photo: int  # index of its captions
    question: str
    answer: str
    kind: str


WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
EACH = {"fit": 60, "test": 25}  # photos that have a thing, and as many that have not


def ask(captions: Sequence[Sequence[str]], split: str) -> list[Asked]:
    """Questions about photos, of each its captions, in an order of their own; `split` is `fit` or `test`."""
    words = [[set(re.findall(r"[a-z]+", caption.lower())) for caption in five] for five in captions]
    rng = random.Random(f"photos {split}")
    made = [one for group in WORDS["open"] for one in _thinned(_open(words, **group))]
    for thing, names in WORDS["asked"].items():
        question = f"Is there {thing} in the photo?"
        made += _halved(words, question, set(names.split()), EACH[split], rng)
    rng.shuffle(made)
    return made


def _open(words: Sequence[Sequence[set[str]]], kind: str, question: str, answers: Mapping[str, str]) -> Iterator[Asked]:
    groups = {answer: set(names.split()) for answer, names in answers.items()}
    for photo, five in enumerate(words):
        named = Counter({answer: _mentions(five, names) for answer, names in groups.items()})
        (first, most), (_, next_most) = named.most_common(2)
        if most >= 3 and next_most <= 1:
            yield Asked(photo, question, first, kind)


def _thinned(asked: Iterable[Asked]) -> list[Asked]:
    """Without what the most frequent answer has more than the second; evenly over the photos."""
    asked = list(asked)
    counts = Counter(one.answer for one in asked).most_common(2)
    if len(counts) < 2:
        return []
    (first, most), (_, limit) = counts
    those = [one for one in asked if one.answer == first]
    return [one for one in asked if one.answer != first] + [those[i * most // limit] for i in range(limit)]


def _halved(
    words: Sequence[Sequence[set[str]]], question: str, names: set[str], most: int, rng: random.Random
) -> list[Asked]:
    """As many photos of which three captions name the thing as of which none does."""
    found = [_mentions(five, names) for five in words]
    having = [photo for photo, count in enumerate(found) if count >= 3]
    without = [photo for photo, count in enumerate(found) if not count]
    amount = min(most, len(having), len(without))
    return [
        Asked(photo, question, answer, "yes/no")
        for answer, photos in (("yes", having), ("no", without))
        for photo in rng.sample(photos, amount)
    ]


def _mentions(five: Sequence[set[str]], names: set[str]) -> int:
    """How many captions name it."""
    return sum(bool(caption & names) for caption in five)
