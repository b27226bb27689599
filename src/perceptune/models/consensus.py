"""Consensus decoding: of several candidate answers, the one that is most like the others (minimum Bayes risk).

Candidates are the beams of a search and distinct samples. The likeness is CIDEr-D with the document frequencies of the
training references, which are stored with the run; references of the answered samples are never read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from perceptune.config.recipe import Recipe
from perceptune.data.answer_cleaning import AS_WRITTEN, AnswerCleaning
from perceptune.data.metrics.base import DocumentFrequencies, pairwise_cider
from perceptune.errors import UserError
from perceptune.models.text_format import TextFormat
from perceptune.types import Consensus, Decoding, Sample

_TIE = 1e-9  # CIDEr-D; scores closer than this are equal up to rounding


class CandidateModel(Protocol):
    """The parts of an `AdaptedModel` that generate and weigh candidates."""

    cleaning: AnswerCleaning | None
    frequencies: DocumentFrequencies | None

    @property
    def text(self) -> TextFormat: ...

    def generate(
        self, samples: Sequence[Sample], decoding: Decoding, *, seeds: Sequence[int] | None = None, n_best: int = 1
    ) -> list[list[int]]: ...

    def rank(self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]]) -> list[list[float]]: ...


def answer_by_consensus(
    model: CandidateModel, samples: Sequence[Sample], decoding: Decoding, batch_size: int
) -> list[str]:
    """Return the most typical candidate answer of each sample; it does not depend on the other samples (float32)."""
    how = decoding.consensus
    assert how is not None
    if model.frequencies is None:
        raise UserError("decode.consensus needs the document frequencies of a run's training references: load a run")
    rows = max(1, batch_size // max(how.samples, how.beams))
    answers: list[str] = []
    for start in range(0, len(samples), rows):
        part = samples[start : start + rows]
        beams = _beams(model, part, decoding, how.beams)
        drawn = _samples(model, part, decoding, how.samples, how.temperature)
        for sample, found, more in zip(part, beams, drawn, strict=True):
            answers.append(_chosen(model, sample, found, more, how.weights == "probability", model.frequencies))
    return answers


def most_typical(weights: Mapping[str, float], frequencies: DocumentFrequencies, preferred: str | None = None) -> str:
    """Return the candidate with the highest weighted sum of CIDEr-D with the others as references.

    `weights` are those of the candidates as references. The order of the candidates does not matter. Of equal ones
    `preferred` is chosen, else the first in alphabetical order.
    """
    candidates = sorted(weights)
    scores = pairwise_cider(candidates, frequencies)
    np.fill_diagonal(scores, 0.0)
    totals = scores @ np.array([weights[candidate] for candidate in candidates])
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
    sections = [recipe.decode, *(other.decode for other in recipe.eval.others.values())]
    return any(section is not None and section.consensus is not None for section in sections)


def _beams(model: CandidateModel, samples: Sequence[Sample], decoding: Decoding, beams: int) -> list[list[str]]:
    """Return the texts of each sample's beams, best first."""
    searching = replace(decoding, consensus=None, sample=False, beams=beams)
    return _decoded(model, model.generate(samples, searching, n_best=beams), beams)


def _samples(
    model: CandidateModel, samples: Sequence[Sample], decoding: Decoding, count: int, temperature: float
) -> list[list[str]]:
    """Return `count` sampled texts of each sample; those of a larger count begin with those of a smaller one."""
    drawing = replace(decoding, consensus=None, sample=True, beams=1, temperature=temperature)
    repeated = [sample for sample in samples for _ in range(count)]
    seeds = [_seed(decoding.seed, number) for number in range(count)] * len(samples)
    return _decoded(model, model.generate(repeated, drawing, seeds=seeds), count)


def _seed(seed: int, number: int) -> int:
    """Return the seed of a draw: different for every pair of `decode.seed` and number of the draw."""
    return (seed << 16) + number + 1


def _decoded(model: CandidateModel, rows: Sequence[list[int]], each: int) -> list[list[str]]:
    texts = [model.text.decode(row) for row in rows]
    return [texts[start : start + each] for start in range(0, len(texts), each)]


def _chosen(
    model: CandidateModel, sample: Sample, beams: Sequence[str], drawn: Sequence[str], is_weighted: bool,
    frequencies: DocumentFrequencies,
) -> str:  # fmt: skip
    """Return the chosen candidate as generated. Candidates whose cleaned texts are equal are one."""
    clean = model.cleaning or AS_WRITTEN
    texts: dict[str, str] = {}  # cleaned -> as generated
    for text in [*beams, *drawn]:
        texts.setdefault(clean(text), text)
    weights = dict.fromkeys(texts, 1 / len(texts))
    if is_weighted and len(texts) > 1:
        [logprobs] = model.rank([sample], [[*texts.values()]])
        chances = np.exp(np.array(logprobs) - max(logprobs))
        weights = dict(zip(texts, (chances / chances.sum()).tolist(), strict=True))
    return texts[most_typical(weights, frequencies, clean(beams[0]))]
