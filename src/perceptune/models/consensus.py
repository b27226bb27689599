"""Consensus decoding: of several candidate answers, the one that is most like the others (minimum Bayes risk).

Candidates are the beams of a search and distinct samples. The likeness is CIDEr-D with the document frequencies of the
training references, which are stored with the run; references of the answered samples are never read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from perceptune.config.consensus import ConsensusConfig
from perceptune.config.recipe import Recipe
from perceptune.data.answer_cleaning import AS_WRITTEN, AnswerCleaning
from perceptune.data.metrics.base import DocumentFrequencies, pairwise_cider
from perceptune.errors import UserError
from perceptune.models.text_format import TextFormat
from perceptune.types import Consensus, Decoding, Features, Sample

_TIE = 1e-9  # CIDEr-D; scores closer than this are equal up to rounding


class References(Protocol):
    """Captions of training media, found by features."""

    def nearest(self, sample: Sample, features: Mapping[str, Features], row: int, count: int) -> dict[str, float]: ...

    def predict_likeness(
        self, texts: Sequence[str], sample: Sample, features: Mapping[str, Features], row: int,
        frequencies: DocumentFrequencies, ridge: float,
    ) -> list[float]: ...  # fmt: skip

    def digest(self) -> str: ...

    @property
    def captions(self) -> Sequence[Sequence[str]]: ...


class CandidateModel(Protocol):
    """The parts of an `AdaptedModel` that generate and weigh candidates."""

    cleaning: AnswerCleaning | None
    frequencies: DocumentFrequencies | None
    neighbours: References | None

    @property
    def text(self) -> TextFormat: ...

    def encode(self, samples: Sequence[Sample]) -> dict[str, Features]: ...

    def generate(
        self, samples: Sequence[Sample], decoding: Decoding, *, seeds: Sequence[int] | None = None,
        num_return_sequences: int = 1, features: Mapping[str, Features] | None = None,
    ) -> list[list[int]]: ...  # fmt: skip

    def rank(self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]]) -> list[list[float]]: ...


def answer_by_consensus(
    model: CandidateModel, samples: Sequence[Sample], decoding: Decoding, batch_size: int
) -> list[str]:
    """Return the most typical candidate answer of each sample; it does not depend on the other samples (float32)."""
    how = decoding.consensus
    assert how is not None
    if model.frequencies is None:
        raise UserError(
            "decode.consensus needs the document frequencies of a run's training references: load the run with "
            f'overrides=["decode.consensus.samples={how.samples}"]'
        )
    if how.uses_training_captions and model.neighbours is None:
        key, value = ("neighbours", how.neighbours) if how.neighbours else ("regression", how.regression)
        raise UserError(
            f"decode.consensus.{key} needs the captions of a run's training media: load the run with "
            f'overrides=["decode.consensus.{key}={value:g}"]'
        )
    answers: list[str] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        features = model.encode(part)
        texts = _candidates(model, part, features, decoding, how)
        weights = _probabilities(model, part, texts) if how.weights == "probability" else [_equal(own) for own in texts]
        for row, (sample, own) in enumerate(zip(part, texts, strict=True)):
            near, predicted = _from_training(model, how, sample, features, row, [*own])
            best = most_typical(
                weights[row], model.frequencies, preferred=next(iter(own)), others=near, predicted=predicted
            )
            answers.append(own[best])
    return answers


def _from_training(
    model: CandidateModel, how: Consensus, sample: Sample, features: Mapping[str, Features], row: int,
    texts: Sequence[str],
) -> tuple[dict[str, float], dict[str, float]]:  # fmt: skip
    """Return captions of neighbours with their weights, and the weighted likeness that is predicted for each text."""
    if (known := model.neighbours) is None or model.frequencies is None:
        return {}, {}
    near = known.nearest(sample, features, row, how.neighbours) if how.neighbours else {}
    if not how.regression:
        return near, {}
    likeness = known.predict_likeness(texts, sample, features, row, model.frequencies, how.ridge)
    return near, {text: how.regression * value for text, value in zip(texts, likeness, strict=True)}


def most_typical(
    weights: Mapping[str, float], frequencies: DocumentFrequencies, preferred: str | None = None,
    others: Mapping[str, float] | None = None, predicted: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """Return the candidate with the highest weighted sum of CIDEr-D with the other candidates as references.

    `weights` are those of the candidates as references, `others` further references with their weights, `predicted`
    what is added to each candidate's sum. The order of none matters. Of equal candidates `preferred` is chosen, else
    the first in alphabetical order.
    """
    candidates = sorted(weights)
    scores = pairwise_cider(candidates, frequencies)
    np.fill_diagonal(scores, 0.0)
    totals = scores @ np.array([weights[candidate] for candidate in candidates])
    if others:
        references = sorted(others)
        totals += pairwise_cider(candidates, frequencies, references) @ np.array([others[one] for one in references])
    if predicted:
        totals += np.array([predicted[one] for one in candidates])
    best = [one for one, total in zip(candidates, totals, strict=True) if total >= totals.max() - _TIE]
    return preferred if preferred in best else best[0]


def decoding_of(recipe: Recipe) -> Decoding:
    """Return the decoding options of a recipe."""
    given = recipe.decode.model_dump()
    consensus = None if given["consensus"] is None else Consensus(**given["consensus"])
    return Decoding(**{**given, "consensus": consensus})


def require_single(decoding: Decoding, use: str) -> Decoding:
    """Return `decoding`. Raises `UserError` for consensus decoding: `use` needs answers that are generated once."""
    if decoding.consensus is not None:
        raise UserError(f"decode.consensus: not for {use}; set decode.consensus=null")
    return decoding


def uses_consensus(recipe: Recipe) -> bool:
    """Return whether a recipe's own data or another set of its evaluation is answered by consensus."""
    return bool(consensus_sections(recipe))


def consensus_sections(recipe: Recipe) -> list[ConsensusConfig]:
    """Return the options of consensus decoding of a recipe's own data and of other sets of its evaluation."""
    sections = [recipe.decode, *(other.decode for other in recipe.eval.others.values())]
    return [section.consensus for section in sections if section is not None and section.consensus is not None]


def _candidates(
    model: CandidateModel,
    samples: Sequence[Sample],
    features: Mapping[str, Features],
    decoding: Decoding,
    how: Consensus,
) -> list[dict[str, str]]:
    """Return the candidates of each sample, the best beam first: cleaned text -> as generated.

    As many sequences are sampled at a time as the beam search has.
    """
    clean = model.cleaning or AS_WRITTEN
    searching = replace(decoding, consensus=None, sample=False, beams=how.beams)
    beams = model.generate(samples, searching, num_return_sequences=how.beams, features=features)
    drawing = replace(decoding, consensus=None, sample=True, beams=1, temperature=how.temperature)
    seeds = [_seed(decoding.seed, number) for number in range(how.samples)]
    rows, drawn = max(1, len(samples) * how.beams // how.samples), list[list[int]]()
    for start in range(0, len(samples), rows):
        part = slice(start, start + rows)
        drawn += model.generate(
            samples[part], drawing, seeds=seeds * len(samples[part]), num_return_sequences=how.samples,
            features={name: given.of_rows(part) for name, given in features.items()},
        )  # fmt: skip
    found = []
    for row in range(len(samples)):
        tokens = [*_of_row(beams, row, how.beams), *_of_row(drawn, row, how.samples)]
        texts: dict[str, str] = {}
        for text in map(model.text.decode, tokens):
            texts.setdefault(clean(text), text)
        found.append(texts)
    return found


def _of_row(sequences: Sequence[list[int]], row: int, each: int) -> Sequence[list[int]]:
    return sequences[row * each : (row + 1) * each]


def _seed(seed: int, number: int) -> int:
    """Return the seed of a draw: different for every pair of `decode.seed` and number of the draw."""
    return (seed << 16) + number + 1


def _equal(texts: Mapping[str, str]) -> dict[str, float]:
    return dict.fromkeys(texts, 1 / len(texts))


def _probabilities(
    model: CandidateModel, samples: Sequence[Sample], candidates: Sequence[Mapping[str, str]]
) -> list[dict[str, float]]:
    """Return the model's probability of each candidate, divided by their sum."""
    found = []
    ranked = model.rank(samples, [[text.strip() for text in texts.values()] for texts in candidates])
    for texts, logprobs in zip(candidates, ranked, strict=True):
        chances = np.exp(np.array(logprobs) - max(logprobs))
        found.append(dict(zip(texts, (chances / chances.sum()).tolist(), strict=True)))
    return found
