"""Answer normalisation of the VQA evaluation code, also used by other evaluations, and that of exact match."""

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the evaluation code passes `re.UNICODE`, which is 32, to `sub` as the count
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
# Contractions whose missing apostrophe is restored.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905
_RESTORED = {
    whole[:at] + whole[at + 1 :]: whole for whole in _CONTRACTIONS for at, char in enumerate(whole) if char == "'"
}
_RESTORED["somebody'd"] = "somebodyd"  # reversed in the evaluation code, and so in official results


@lru_cache(maxsize=1 << 16)  # annotators' answers repeat
def normalise(text: str) -> str:
    """Remove punctuation and articles, convert numbers up to ten to digits, restore apostrophes of contractions."""
    words = (_NUMBERS.get(word, word) for word in without_punctuation(text).lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def without_punctuation(text: str) -> str:
    """Delete a mark if it is next to a space anywhere or the text has a number with commas, else make it a space."""
    thousands = _THOUSANDS.search(text) is not None
    found = text
    for mark in _PUNCTUATION:
        glued = not thousands and f"{mark} " not in text and f" {mark}" not in text
        found = found.replace(mark, " " if glued else "")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def squeezed(text: str, *, lowercase: bool = False) -> str:
    """Return a text without final periods and repeated whitespace."""
    found = " ".join(text.split())
    while found.endswith("."):
        found = found.rstrip(".").rstrip()
    return found.lower() if lowercase else found
