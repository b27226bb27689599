"""Tags in questions that say where a medium belongs: `<image>`, and the placeholders of other programs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record

_LABEL = r"(?:(?:Picture|Image|Audio|Video) ?1: ?)"
TAG = re.compile(rf"{_LABEL}?<({'|'.join(MODALITIES)})>[ \t]*\n?")
_LABEL_ALONE = re.compile(rf"\A{_LABEL}[ \t]*\n")
# The name of a file between tags, as in Qwen-VL and Qwen-Audio.
_NAMED = re.compile(rf"({_LABEL}?)<(img|audio|video)>([^<>\n]+)</\2>")
# Placeholders of MiniGPT-4, DeepSeek-VL, Qwen2-VL, Phi-3, Gemma 3, SALMONN, Qwen2-Audio and others.
_OTHERS = {
    "image": r"<(?:Img|im_start|\|vision_start\|)>{}</?(?:Img|im_end|\|vision_end\|)>|{}".replace(
        "{}", r"<(?:ImageHere|image[_-]placeholder|start_of_image|image_?1|\|image(?:_pad|_1)?\|)>"
    ),
    "video": r"<\|vision_start\|>{}<\|vision_end\|>|{}".replace(
        "{}", r"<(?:VideoHere|video[_-]placeholder|\|video(?:_pad|_1)?\|)>"
    ),
    "audio": r"<(?:Speech|Audio|\|audio_bos\|)>{}<(?:/Speech|/Audio|\|audio_eos\|)>|{}".replace(
        "{}", r"<(?:SpeechHere|AudioHere|audio[_-]placeholder|sound|speech|\|audio(?:_pad|_1)?\||\|AUDIO\|)>"
    ),
}
_WORD = re.compile(r"<[a-z]+>")  # may be the text of a web page


class Tagged(NamedTuple):
    """Questions with the tags `<image>`, `<video>` and `<audio>` only."""

    texts: list[str]
    named: list[tuple[str, str]]  # modality and file of each name between tags


def unify_tags(record: Record, texts: Sequence[str], media: Mapping[str, str]) -> Tagged:
    """Replace placeholders of other programs by tags. Raises `RowError` for one of a medium that is not there."""
    named: list[tuple[str, str]] = []

    def tag(match: re.Match[str]) -> str:
        modality = "image" if match[2] == "img" else match[2]
        if match[2] != "img" and not match[1] and modality not in media:
            return match[0]  # of a web page
        named.append((modality, match[3].strip()))
        return f"<{modality}>"

    texts = [_NAMED.sub(tag, text) for text in texts]
    given = {*media, *(modality for modality, _ in named)}
    tagged = {tag for text in texts for tag in TAG.findall(text)}
    for modality, pattern in _OTHERS.items():
        wanted = _meant(modality, given)
        if wanted in tagged:
            continue
        for found in (match[0] for text in texts for match in re.finditer(pattern, text)):
            if wanted not in given and not _WORD.fullmatch(found):
                raise record.error(f"`{found}` in the conversation, but no {wanted} given{likely_key(record, wanted)}")
        if wanted in given:
            texts = [re.sub(pattern, f"<{wanted}>", text) for text in texts]
    if "video" not in tagged and _meant("image", given) == "video":
        texts = [text.replace("<image>", "<video>") for text in texts]
    return Tagged([_LABEL_ALONE.sub("", text) for text in texts] if given else list(texts), named)


def _meant(modality: str, given: set[str]) -> str:
    """Return the modality of a placeholder: many programs write `<image>` for a video, too."""
    return "video" if modality == "image" and "image" not in given and "video" in given else modality


def check_tags(record: Record, texts: Sequence[str], media: Mapping[str, str]) -> None:
    """Raise `RowError` if a question has more tags of a modality than there are media.

    Without such media, `<video>` and `<audio>` are text, as in conversations about web pages.
    """
    for text in texts:
        tags = TAG.findall(text)
        for modality in dict.fromkeys(["image", *media]):
            if (count := tags.count(modality)) > (given := int(modality in media)):
                hint = "" if given else likely_key(record, modality)
                raise record.error(f"{count} `<{modality}>` in a turn, but {given} {modality} given{hint}")


def likely_key(record: Record, modality: str) -> str:
    """Return a hint at a key that may hold the missing medium."""
    keys = (key for key, value in record.values.items() if modality in key.lower() and isinstance(value, str) and value)
    return next((f"; is it in `{key}`? `{modality}_key: {key}` reads it" for key in keys), "")


def same_name(first: str, second: str) -> bool:
    """Return whether two paths have the same last part."""
    return PurePath(first).name == PurePath(second).name
