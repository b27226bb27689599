"""Tokenization of captions in scripts without blanks between words: each character is a token.

These are Chinese characters, kana, Thai, Lao, Khmer and Myanmar; combining marks belong to their character. What
stands between, such as a number or an English word, is split as in `_ptb.py`, after compatibility normalisation (NFKC:
full-width digits are digits). Korean has blanks. Values are not comparable with those of Penn Treebank tokens.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from perceptune.data.metrics._ptb import TO_ASCII, ptb_tokens

# First words of the characters' names in Unicode.
_SCRIPTS = ("CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "HENTAIGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "THAI ", "LAO ",
            "KHMER ", "MYANMAR ")  # fmt: skip


def character_tokens(text: str) -> list[str]:
    """Tokenize a caption: lower case, without punctuation, each character of these scripts with its marks a token."""
    tokens: list[str] = []
    between, is_character = "", False
    for char in unicodedata.normalize("NFKC", text):
        kind = _kind(char)
        if kind == "mark" and is_character:
            tokens[-1] += char
        elif kind == "character":
            tokens += ptb_tokens(between)
            tokens.append(char)
            between, is_character = "", True
        else:
            between += " " if kind == "break" else char
            is_character = False
    return tokens + ptb_tokens(between)


def lacks_blanks(texts: Iterable[str]) -> bool:
    """Return whether most letters of the texts belong to scripts without blanks."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    letters = {char: count for char, count in counts.items() if char.isalpha()}
    return 2 * sum(count for char, count in letters.items() if _kind(char) == "character") > sum(letters.values())


@lru_cache(maxsize=1 << 16)
def _kind(char: str) -> Literal["character", "mark", "break", "other"]:
    """Classify a character; a break is punctuation or format that `ptb_tokens` would take for a word."""
    if char.isascii() or ord(char) in TO_ASCII:
        return "other"
    category = unicodedata.category(char)
    if category.startswith("M"):
        return "mark"
    if category.startswith("L") or category == "Nl":  # 〇 is a number
        return "character" if unicodedata.name(char, "").startswith(_SCRIPTS) else "other"
    return "break" if category.startswith("P") or category == "Cf" else "other"
