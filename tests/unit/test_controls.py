"""Samples of the controls: media shuffled, taken away, exchanged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from perceptune.errors import UserError
from perceptune.evaluation.controls import exchange_media, shuffle_media, without_media
from perceptune.types import Mark, Media, Message, Sample


def shown(*names: str) -> Media:
    return tuple(map(Path, names)) if len(names) > 1 else Path(names[0])


@pytest.mark.parametrize("seed", range(30))
def test_every_sample_gets_as_many_media_of_another(seed: int) -> None:
    draw = random.Random(seed)
    samples = []
    for number in range(draw.randint(50, 80)):
        media: dict[str, Media] = {}
        for kind in ("image", "audio"):
            count = draw.choice([0, 1, 1, 2, 3])
            if count:
                media[kind] = shown(*(f"{kind}-{draw.randrange(200)}" for _ in range(count)))
        samples.append(Sample(str(number), media, f"question {number}"))
    moved = shuffle_media(samples, seed)
    again: dict[tuple[str, Media], Media] = {}
    overlaps = 0
    for before, after in zip(samples, moved, strict=True):
        assert (after.id, after.prompt, list(after.media)) == (before.id, before.prompt, list(before.media))
        for kind in before.media:
            own, given = before.list_media(kind), after.list_media(kind)
            assert len(given) == len(own)
            assert isinstance(after.media[kind], tuple) == (len(own) > 1)
            assert given != own
            overlaps += not set(own).isdisjoint(given)
            assert again.setdefault((kind, before.media[kind]), after.media[kind]) == after.media[kind]
    assert overlaps == 0, "another sample's media are no own ones in another order"


def test_single_media_are_shuffled_as_they_always_were() -> None:
    samples = [Sample(str(i), {"image": Path(f"{i % 5}.png")}, "color?") for i in range(10)]
    moved = [str(one.media["image"]) for one in shuffle_media(samples, 3)]
    assert moved == 2 * ["2.png", "0.png", "3.png", "4.png", "1.png"]


def test_pairs_of_the_same_few_images_share_none_with_those_they_get() -> None:
    names = [(a, b) for a in "abcd" for b in "abcd" if a < b]
    samples = [Sample("".join(pair), {"image": shown(*pair)}, "which?") for pair in names]
    shared = sum(
        bool(set(before.list_media("image")) & set(after.list_media("image")))
        for before, after in zip(samples, shuffle_media(samples, 0), strict=True)
    )
    assert shared <= 4, "only the opposite pair shares none, and one cycle cannot hold three such exchanges"


def test_a_sample_alone_with_its_number_of_media_gets_single_ones_of_others() -> None:
    samples = [Sample(str(i), {"image": Path(f"{i}.png")}, "color?") for i in range(4)]
    samples.append(Sample("pair", {"image": shown("0.png", "9.png")}, "which?"))
    given = shuffle_media(samples, 0)[-1].list_media("image")
    assert len(set(given)) == 2
    assert set(given) <= {Path(f"{i}.png") for i in (1, 2, 3)}
    with pytest.raises(UserError, match=r"needs 4 different media in samples that have them for `image`.* hold 2"):
        shuffle_media(samples[-1:], 0)


def test_exchanged_media_are_in_reverse_order() -> None:
    history = (Message("user", "this?", (Mark(0, "image"),)), Message("assistant", "red"))
    media = {"image": shown("1", "2", "3"), "audio": Path("s")}
    three = Sample("a", media, "that?", (), {}, (Mark(0, "image"),), history)
    one = Sample("b", {"image": Path("1")}, "color?")
    first, second = exchange_media([three, one])
    assert first.media == {"image": shown("3", "2", "1"), "audio": Path("s")}
    assert (first.prompt, first.marks, first.history) == (three.prompt, three.marks, three.history)
    assert second == one
    with pytest.raises(UserError, match="several media of a modality"):
        exchange_media([one])
    first, second = without_media([three, one], 0)
    assert (first.media, first.marks, first.prompt) == ({}, (), three.prompt)
    assert first.history == (Message("user", "this?"), Message("assistant", "red")), "no place is left without a medium"
    assert second == Sample("b", {}, "color?")
