"""Places of several media in a prompt: tags such as `<image>` leave the text and become marks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record, RowError
from perceptune.data.tasks._tags import check_tags, cut_tags, number_tags
from perceptune.types import Mark, Media, Message

_EXTRA = dict.fromkeys((" ", "\t", "\n"), "\n")  # after a tag they belong to it: a line break is put there


class Placed(NamedTuple):
    """A prompt without tags, and the places of its media."""

    text: str
    marks: tuple[Mark, ...] = ()
    order: Mapping[str, Sequence[int]] = {}  # of modalities whose media are in another order than given
    history: tuple[Message, ...] = ()

    def arrange(self, media: Mapping[str, Media]) -> dict[str, Media]:
        """Return media in the order of their marks."""
        arranged = dict(media)
        for name, order in self.order.items():
            given = media[name]
            assert isinstance(given, tuple)  # a single one has no order
            arranged[name] = tuple(given[index] for index in order)
        return arranged


def place_media(record: Record, text: str, names: Mapping[str, Sequence[str]], *, allow_empty: bool) -> Placed:
    """Cut the tags out of the prompt of a row with media; `names` are those of its files.

    With at most one medium of each modality, one tag such as `<image>` at the start or the end is cut, where other
    programs put it: others are text. Raises `RowError` if there are tags for several media, but not one for each.
    """
    if all(len(files) < 2 for files in names.values()):
        written = [f"<{name}>" for name, files in names.items() if files]
        is_outside = any(text.strip().startswith(tag) or text.strip().endswith(tag) for tag in written)
        if not is_outside or sum(map(text.count, written)) > 1:
            return Placed(text)
    tagged = number_tags(record, [text], {name: files for name, files in names.items() if files}, "prompt").texts[0]
    given = [name for name in MODALITIES if names.get(name)]
    if "image" not in given:
        check_tags(record, [tagged], ())
    plain, tags = cut_tags(tagged, given)
    if not tags:
        return Placed(text)
    marks, order = list[Mark](), dict[str, Sequence[int]]()
    for modality in given:
        own = [tag.number for tag in tags if tag.modality == modality]
        count = len(names[modality])
        if not own:
            marks += [Mark(0, modality)] * count
        elif len(own) != count:
            raise mismatch(record, len(own), count, modality, "prompt")
        elif (found := order_of(record, [own], modality, "prompt")) != list(range(count)):
            order[modality] = found
    if not plain and not allow_empty:
        raise record.error(
            "the prompt holds nothing but tags (`allow_empty_prompt: true` permits this)", "empty-prompt"
        )
    return Placed(plain, (*marks, *(Mark(tag.at, tag.modality) for tag in tags)), order)


def place_files(record: Record, text: str, media: Mapping[str, Media], *, allow_empty: bool) -> Placed:
    """Cut the tags out of a row's prompt as `place_media` does, for media that are known by their locations."""
    names = {name: [*map(str, given)] if isinstance(given, tuple) else [str(given)] for name, given in media.items()}
    return place_media(record, text, names, allow_empty=allow_empty)


def order_of(record: Record, numbers: Sequence[Sequence[int | None]], modality: str, place: str) -> list[int]:
    """Return the index of the medium of each tag; `numbers` are those of the tags of each text.

    Tags without numbers, or with numbers that start again in each text, are in order. Raises `RowError` if numbers are
    missing or repeat.
    """
    flat = [number for some in numbers for number in some]
    wanted = list(range(1, len(flat) + 1))
    if not any(flat):
        return list(range(len(flat)))
    if None not in flat and sorted(number or 0 for number in flat) == wanted:
        return [(number or 0) - 1 for number in flat]
    if all([*some] == wanted[: len(some)] for some in numbers):
        return list(range(len(flat)))
    shown = ", ".join("none" if number is None else str(number) for number in flat[:10])
    raise record.error(f"the `<{modality}>` in the {place} have the numbers {shown}, not 1 to {len(flat)} once each")


def mismatch(record: Record, tags: int, count: int, modality: str, place: str) -> RowError:
    """Return the error for a number of tags that is neither 0 nor that of the media."""
    what = modality if count == 1 or modality == "audio" else f"{modality}s"
    return record.error(f"{tags} `<{modality}>` in the {place}, but {count} {what} given", "tag-count")


def with_tags(text: str, marks: Sequence[Mark], *, before: Mapping[str, str] = _EXTRA) -> str:
    """Return a text with a tag at each mark, followed by what `before` has for the next character.

    By default `cut_tags` reads it as it was.
    """
    parts, start = list[str](), 0
    for mark in marks:
        parts += [text[start : mark.at], f"<{mark.modality}>", before.get(text[mark.at : mark.at + 1], "")]
        start = mark.at
    return "".join([*parts, text[start:]])
