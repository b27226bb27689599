"""VQA accuracy: an answer is as good as the number of annotators who gave it, three of them make it right.

For each of the n annotators, min(1, matches among the other n - 1 / 3); the mean of these. With ten annotators 0, 0.3,
0.6, 0.9 or 1. Before that, answers are normalised; by which rules, and when, is the dialect:

- `official`: as the VQA evaluation code does, only where the annotators disagree. Where all gave the same answer it is
  compared as written, so `Yes` for ten times `yes` scores 0.
- `always`: the same rules, always (LMMs-Eval and VLMEvalKit on VQA v2).
- `evalai`: lower case first, without commas and question marks and with `'s` as a word of its own, then the same
  rules, always (the evaluators of TextVQA and ST-VQA, MMF).
- `epalm`: predictions always, answers only where the annotators disagree, and those without punctuation alone (the
  released code of eP-ALM).
"""

from collections.abc import Sequence
from typing import Literal

from perceptune.data.metrics.base import MetricOptions, Needs, normalise, score_of, without_punctuation

NEEDS = Needs("answers", annotators=4, for_one_answer="exact", by_group="accuracy")


class Options(MetricOptions):
    """The dialect, and the case of predictions."""

    dialect: Literal["official", "always", "evalai", "epalm"] = "official"
    lowercase: bool = False  # whether predictions are converted to lower case first, as VQA v2's answers are


def accuracy(prediction: str, answers: Sequence[str], options: Options) -> float:
    """Compute the score of a prediction, from 0 to 1, by the annotators' `answers` and the dialect's rules."""
    given, asked = _trimmed(prediction), [_trimmed(answer) for answer in answers]
    if options.lowercase:
        given = given.lower()
    if options.dialect == "epalm":
        disagree = len(set(answers)) > 1
        return agreement(normalise(given), [without_punctuation(a) if disagree else a for a in answers])
    if options.dialect == "evalai":
        given, asked = _evalai(given), [_evalai(answer) for answer in asked]
    if options.dialect != "official" or len(set(asked)) > 1:
        given, asked = normalise(given), [normalise(answer) for answer in asked]
    return agreement(given, asked)


score = score_of("vqa", accuracy, Options())


def agreement(answer: str, answers: Sequence[str]) -> float:
    """Compute the mean over the annotators of min(1, equal answers of the others / 3)."""
    equal = sum(other == answer for other in answers)
    # For an annotator who gave this answer, one equal answer fewer is among the others.
    return (equal * min(1.0, (equal - 1) / 3) + (len(answers) - equal) * min(1.0, equal / 3)) / len(answers)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _evalai(text: str) -> str:
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
