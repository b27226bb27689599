"""Tags in questions that say where a medium belongs: `<image>`, and the placeholders of other programs."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record

_WORDS = r"(?:Picture|Image|Audio|Video) ?"
_LABEL = rf"(?:{_WORDS}1: ?)"
_KINDS = "|".join(MODALITIES)
TAG = re.compile(rf"{_LABEL}?<({_KINDS})>[ \t]*\n?")
# A tag among several media; its number is that of the medium.
NUMBERED_TAG = re.compile(rf"(?:{_WORDS}(\d{{1,3}}): ?\n?)?<({_KINDS})>[ \t]*\n?")
_LABEL_ALONE = re.compile(rf"\A{_LABEL}[ \t]*\n")
_LABEL_LINE = re.compile(r"^(Picture|Image|Audio|Video) ?(\d{1,3}):[ \t]*(?:\n|\Z)", re.MULTILINE)
_WORD = re.compile(r"<[a-z]+>")  # may be the text of a web page


class _Forms(NamedTuple):
    """Placeholders of other programs."""

    named: re.Pattern[str]  # the name of a file between tags, as in Qwen-VL and Qwen-Audio
    others: dict[str, str]  # modality -> pattern
    is_numbered: bool


def _forms(number: str, word_number: str, *, is_numbered: bool) -> _Forms:
    """Return the placeholders of MiniGPT-4, DeepSeek-VL, Qwen2-VL, Phi-3, Gemma 3, SALMONN, Qwen2-Audio and others."""
    video_tag, audio_tag = (f"|video{word_number}", f"|audio{word_number}") if is_numbered else ("", "")
    image = rf"<(?:ImageHere|image[_-]placeholder|start_of_image|image{word_number}|\|image(?:_pad|_{number})?\|)>"
    video = rf"<(?:VideoHere|video[_-]placeholder{video_tag}|\|video(?:_pad|_{number})?\|)>"
    speech = rf"SpeechHere|AudioHere|audio[_-]placeholder|sound|speech{audio_tag}"
    audio = rf"<(?:{speech}|\|audio(?:_pad|_{number})?\||\|AUDIO\|)>"
    label = rf"(?:{_WORDS}{number}: ?)"
    return _Forms(
        re.compile(rf"({label}?)<(img|audio|video)>([^<>\n]+)</\2>"),
        {
            "image": rf"<(?:Img|im_start|\|vision_start\|)>{image}</?(?:Img|im_end|\|vision_end\|)>|{image}",
            "video": rf"<\|vision_start\|>{video}<\|vision_end\|>|{video}",
            "audio": rf"<(?:Speech|Audio|\|audio_bos\|)>{audio}<(?:/Speech|/Audio|\|audio_eos\|)>|{audio}",
        },
        is_numbered,
    )


_ONE = _forms("1", "_?1", is_numbered=False)
_SEVERAL = _forms(r"\d{1,3}", r"[_ ]?\d{1,3}", is_numbered=True)


class Named(NamedTuple):
    """The name of a file between tags."""

    modality: str
    file: str
    text: int  # index of its text


class Tagged(NamedTuple):
    """Questions with the tags `<image>`, `<video>` and `<audio>` only."""

    texts: list[str]
    named: list[Named]


def unify_tags(record: Record, texts: Sequence[str], media: Collection[str]) -> Tagged:
    """Replace placeholders of other programs by tags. Raises `RowError` for one of a medium that is not there."""
    named: list[Named] = []

    def tag(match: re.Match[str], index: int) -> str:
        modality = "image" if match[2] == "img" else match[2]
        if match[2] != "img" and not match[1] and modality not in media:
            return match[0]  # of a web page
        named.append(Named(modality, match[3].strip(), index))
        return f"<{modality}>"

    texts = [_ONE.named.sub(lambda match, at=index: tag(match, at), text) for index, text in enumerate(texts)]  # type: ignore[misc]
    given = {*media, *(name.modality for name in named)}
    texts = _plain_tags(record, texts, given, _ONE, "conversation")
    return Tagged([_LABEL_ALONE.sub("", text) for text in texts] if given else list(texts), named)


def number_tags(
    record: Record, texts: Sequence[str], media: Mapping[str, Sequence[str]], place: str = "conversation"
) -> Tagged:
    """Replace placeholders by tags that `NUMBERED_TAG` matches, where a modality may have several media.

    `media` maps a modality to the names of its files, which names between tags are compared with; only those of other
    modalities are returned. `place` describes the texts in errors. Raises `RowError` as `unify_tags` does.
    """
    named: list[Named] = []

    def tag(match: re.Match[str], index: int) -> str:
        modality, file = "image" if match[2] == "img" else match[2], match[3].strip()
        if match[2] != "img" and not match[1] and modality not in media:
            return match[0]  # of a web page
        if not media.get(modality):
            named.append(Named(modality, file, index))
            return f"<{modality}>"
        same = [number for number, name in enumerate(media[modality], 1) if same_name(name, file)]
        return _tag(modality, str(same[0]) if len(same) == 1 else match[1])

    texts = [_SEVERAL.named.sub(lambda match, at=index: tag(match, at), text) for index, text in enumerate(texts)]  # type: ignore[misc]
    given = {*media, *(name.modality for name in named)}
    texts = _plain_tags(record, texts, given, _SEVERAL, place)
    for modality in given:
        if not any(f"<{modality}>" in text for text in texts):
            texts = _lines_as_tags(texts, modality, len(media.get(modality, ())))
    return Tagged(list(texts), named)


def _plain_tags(record: Record, texts: Sequence[str], given: set[str], forms: _Forms, place: str) -> Sequence[str]:
    tagged = {modality for modality in MODALITIES if any(f"<{modality}>" in text for text in texts)}
    for modality, pattern in forms.others.items():
        wanted = _meant(modality, given)
        if wanted in tagged:
            continue
        for found in (match[0] for text in texts for match in re.finditer(pattern, text)):
            if wanted not in given and not _WORD.fullmatch(found):
                raise record.error(f"`{found}` in the {place}, but no {wanted} given{likely_key(record, wanted)}")
        if wanted in given:
            texts = [re.sub(pattern, lambda found: _tag(wanted, found[0] if forms.is_numbered else ""), text)  # noqa: B023
                     for text in texts]  # fmt: skip
    if "video" not in tagged and _meant("image", given) == "video":
        texts = [text.replace("<image>", "<video>") for text in texts]
    return texts


def _tag(modality: str, numbered: str) -> str:
    """Return a tag with the number in the text `numbered`, if there is one."""
    number = re.search(r"\d+", numbered)
    return f"Image {number[0]}: <{modality}>" if number else f"<{modality}>"


def _lines_as_tags(texts: Sequence[str], modality: str, count: int) -> Sequence[str]:
    """Put tags in place of labels with lines of their own (`Image 1:`), if there is one for each medium."""
    lines = [match for text in texts for match in _LABEL_LINE.finditer(text) if _labelled(match) == modality]
    if sorted(int(match[2]) for match in lines) != list(range(1, count + 1)):
        return texts
    return [
        _LABEL_LINE.sub(lambda match: _tag(modality, match[2]) if _labelled(match) == modality else match[0], text)
        for text in texts
    ]


def _labelled(label: re.Match[str]) -> str:
    """Return the modality of a label; images have two."""
    return label[1].lower() if label[1].lower() in MODALITIES else "image"


def _meant(modality: str, given: Collection[str]) -> str:
    """Return the modality of a placeholder: many programs write `<image>` for a video, too."""
    return "video" if modality == "image" and "image" not in given and "video" in given else modality


def check_tags(record: Record, texts: Sequence[str], media: Collection[str]) -> None:
    """Raise `RowError` if a question has more tags of a modality than there are media, of which there is one each.

    Without such media, `<video>` and `<audio>` are text, as in conversations about web pages.
    """
    for text in texts:
        tags = TAG.findall(text)
        for modality in dict.fromkeys(["image", *media]):
            if (count := tags.count(modality)) > (given := int(modality in media)):
                hint = "" if given else likely_key(record, modality)
                raise record.error(f"{count} `<{modality}>` in a turn, but {given} {modality} given{hint}")


class Cut(NamedTuple):
    """A tag that was cut out of a text."""

    at: int  # index in the text without tags
    modality: str
    number: int | None


def cut_tags(text: str, modalities: Collection[str]) -> tuple[str, list[Cut]]:
    """Return the text without the tags of some modalities and without white space around it, and these tags."""
    found, parts, end, at = list[Cut](), list[str](), 0, 0
    for match in _tags_of(text, modalities):
        parts.append(text[end : match.start()])
        at, end = at + len(parts[-1]), match.end()
        found.append(Cut(at, match[2], int(match[1]) if match[1] else None))
    whole = "".join([*parts, text[end:]])
    left, plain = len(whole) - len(whole.lstrip()), whole.strip()
    return plain, [tag._replace(at=min(max(tag.at - left, 0), len(plain))) for tag in found]


def _tags_of(text: str, modalities: Collection[str]) -> Iterator[re.Match[str]]:
    return (match for match in NUMBERED_TAG.finditer(text) if match[2] in modalities)


def likely_key(record: Record, modality: str) -> str:
    """Return a hint at a key that may hold the missing medium."""
    keys = (key for key, value in record.values.items() if modality in key.lower() and isinstance(value, str) and value)
    return next((f"; is it in `{key}`? `{modality}_key: {key}` reads it" for key in keys), "")


def same_name(first: str, second: str) -> bool:
    """Return whether two paths have the same last part."""
    return PurePath(first).name == PurePath(second).name
