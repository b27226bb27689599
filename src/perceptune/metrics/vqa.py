"""VQA accuracy: an answer is as good as the number of annotators who gave it, three of them make it right.

For each of the n annotators, min(1, matches among the other n - 1 / 3); the mean of these. With ten annotators 0, 0.3,
0.6, 0.9 or 1. Before that, answers are normalised; by which rules, and when, is the dialect:

- `official`: as the VQA evaluation code does, only where the annotators disagree. Where all gave the same answer it is
  compared as written, so `Yes` for ten times `yes` is worth nothing.
- `always`: the same rules, always (LMMs-Eval and VLMEvalKit on VQA v2).
- `evalai`: lower case first, without commas and question marks and with `'s` as a word of its own, then the same
  rules, always (the EvalAI evaluators of TextVQA, ST-VQA and OK-VQA).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict

from perceptune.metrics.base import Groups, Scored, scored_by_group, zipped

REFERENCES: Literal["references", "answers"] = "answers"

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the evaluation code hands `re.UNICODE`, which is 32, to `sub` as the count
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
# What has lost one of its apostrophes gets it back.
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
_RESTORED["somebody'd"] = "somebodyd"  # the wrong way round in the evaluation code; official numbers were made so


class Options(BaseModel):
    """Which rules."""

    model_config = ConfigDict(extra="forbid")

    dialect: Literal["official", "always", "evalai"] = "official"
    lowercase: bool = False  # predictions are written in lower case first, as VQA v2's answers are


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    options: Options = Options(),  # noqa: B008
    *,
    groups: Groups | None = None,
) -> Scored:
    """`accuracy` between 0 and 1, and `accuracy_<group>` of each group's; `references` are the annotators' answers.

    Raises `ValueError` if there are no samples, or one without answers.
    """
    rule = accuracy_of(options)
    values = [rule(prediction, answers) for prediction, answers in zipped(predictions, references)]
    return scored_by_group(values, groups, {"metric": "vqa", **options.model_dump()})


def accuracy_of(options: Options) -> Callable[[str, Sequence[str]], float]:
    """The accuracy of one answer by these rules."""

    def accuracy(prediction: str, answers: Sequence[str]) -> float:
        given, asked = _trimmed(prediction), [_trimmed(answer) for answer in answers]
        if options.lowercase:
            given = given.lower()
        if options.dialect == "evalai":
            given, asked = _evalai(given), [_evalai(answer) for answer in asked]
        if options.dialect != "official" or len(set(asked)) > 1:
            given, asked = normalise(given), [normalise(answer) for answer in asked]
        return agreement(given, asked)

    return accuracy


def agreement(answer: str, answers: Sequence[str]) -> float:
    """The mean over the annotators of min(1, equal answers of the others / 3)."""
    equal = sum(other == answer for other in answers)
    # Those who gave this answer have one equal answer fewer among the others.
    return (equal * min(1.0, (equal - 1) / 3) + (len(answers) - equal) * min(1.0, equal / 3)) / len(answers)


@lru_cache(maxsize=1 << 16)  # annotators repeat themselves
def normalise(text: str) -> str:
    """Without punctuation and articles, numbers up to ten as digits, contractions with their apostrophes."""
    words = (_NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _evalai(text: str) -> str:
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def _without_punctuation(text: str) -> str:
    """A mark is deleted if it stands beside a space anywhere, or there is a number with commas; else it is a space."""
    thousands = _THOUSANDS.search(text) is not None
    found = text
    for mark in _PUNCTUATION:
        glued = not thousands and f"{mark} " not in text and f" {mark}" not in text
        found = found.replace(mark, " " if glued else "")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)
