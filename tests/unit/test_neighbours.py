"""Consensus decoding that also compares candidates with captions of the nearest training media."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceptune
import support
from perceptune.config.recipe import load_recipe
from perceptune.data.build_task import make_task
from perceptune.data.metrics.base import CiderIndex, DocumentFrequencies, pairwise_cider
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.models.consensus import most_typical
from perceptune.models.document_frequencies import training_frequencies
from perceptune.models.neighbours import Neighbours, read_neighbours, training_neighbours, write_neighbours
from perceptune.models.run_location import NEIGHBOURS
from perceptune.types import Consensus, Decoding, Sample

HOW = Consensus(samples=4, temperature=1.5, beams=2, neighbours=3)


@pytest.fixture(scope="module", params=["cls", "cls-mean", "all"])
def model(request: pytest.FixtureRequest, dwarfs: Path) -> AdaptedModel:
    method = {"name": "epalm", "n_levels": 2, "tokens": request.param, "standardize": False}
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", method=method)
    built = perceptune.build(given)
    built.frequencies = training_frequencies(built.recipe)
    built.neighbours = training_neighbours(built.recipe, built.stores)
    return built


def samples_of(model: AdaptedModel) -> list[Sample]:
    return list(make_task(model.recipe).samples("train"))


def literal(model: AdaptedModel, sample: Sample, count: int) -> dict[str, float]:
    """The nearest others by a loop over all training media."""
    first = {str(one.media["image"]): one for one in reversed(samples_of(model))}
    vectors = {}
    for name, one in first.items():
        last = model.encode([one])["image"].values[0, -1].double()
        vectors[name] = last[0] if len(last) == 1 else torch.cat([last[0], last[1:].mean(0)])
    every = torch.stack([*vectors.values()])
    whole = {name: (one - every.mean(0)) / every.std(0).clamp_min(1e-4) for name, one in vectors.items()}
    own = str(sample.media["image"])
    cosines = {name: float(torch.cosine_similarity(whole[own], one, 0)) for name, one in whole.items() if name != own}
    best = sorted(cosines, key=lambda name: -cosines[name])[:count]
    total = sum(math.exp(cosines[name]) for name in best)
    found: dict[str, float] = {}
    for name in best:
        texts = {text for one in samples_of(model) if str(one.media["image"]) == name for text in one.targets}
        for text in texts:
            found[text] = found.get(text, 0.0) + math.exp(cosines[name]) / total / len(texts)
    return found


def test_neighbours_are_the_nearest_by_cosine_and_never_the_own_medium(model: AdaptedModel, tmp_path: Path) -> None:
    samples = samples_of(model)
    features = model.encode(samples)
    for row, sample in list(enumerate(samples))[:6]:
        found = model.neighbours.nearest(sample, features, row, 3)  # type: ignore[union-attr]
        assert found == pytest.approx(literal(model, sample, 3), rel=1e-2)
        assert sum(found.values()) == pytest.approx(1)
        alone = model.neighbours.nearest(sample, model.encode([sample]), 0, 3)  # type: ignore[union-attr]
        assert alone == pytest.approx(found)
    copied = tmp_path / "elsewhere.png"  # the same content under another name
    copied.write_bytes(Path(str(samples[0].media["image"])).read_bytes())
    again = replace(samples[0], media={"image": copied})
    found = model.neighbours.nearest(again, features, 0, 3)  # type: ignore[union-attr]
    assert found == pytest.approx(literal(model, samples[0], 3), rel=1e-2)
    assert model.neighbours.nearest(Sample("text", {}, "what?"), {}, 0, 3) == {}  # type: ignore[union-attr]
    every = model.neighbours.nearest(samples[0], features, 0, 1000)  # type: ignore[union-attr]
    assert sum(every.values()) == pytest.approx(1), "all others, if more are wanted"


def test_they_are_stored_whole(model: AdaptedModel, tmp_path: Path) -> None:
    write_neighbours(tmp_path, model.neighbours)  # type: ignore[arg-type]
    again = read_neighbours(tmp_path / NEIGHBOURS)
    assert again.digest() == model.neighbours.digest()  # type: ignore[union-attr]
    samples = samples_of(model)[:2]
    features = model.encode(samples)
    assert again.nearest(samples[1], features, 1, 2) == model.neighbours.nearest(samples[1], features, 1, 2)  # type: ignore[union-attr]
    data = (tmp_path / NEIGHBOURS).read_bytes()
    for damage in (b"", data[: len(data) // 2]):
        (tmp_path / NEIGHBOURS).write_bytes(damage)
        with pytest.raises(UserError, match=rf"{NEIGHBOURS}: damaged"):
            read_neighbours(tmp_path / NEIGHBOURS)


def test_an_answer_is_the_one_most_like_candidates_and_neighbours(model: AdaptedModel) -> None:
    samples, decoding = samples_of(model)[:5], Decoding(6, consensus=HOW)
    together = model.answer(samples, decoding=decoding)
    assert [model.answer([sample], decoding=decoding)[0] for sample in samples] == together
    assert model.answer(samples[::-1], decoding=decoding, batch_size=2) == together[::-1]


def test_texts_are_predicted_as_by_a_regression_written_out(model: AdaptedModel) -> None:
    """In the form with a kernel, of CIDEr-D with each training medium's captions, the own medium left out."""
    known = model.neighbours
    assert isinstance(known, Neighbours)
    assert model.frequencies is not None
    samples, texts = samples_of(model), ["a red picture", "red red", "nothing like it"]
    features = model.encode(samples)
    vectors = known.vectors.double()
    for row in (0, 3):
        own = known._vector(samples[row], features, row)
        assert own is not None
        kept = [one for one in range(len(vectors)) if one not in known._own_rows(samples[row])]
        assert len(kept) < len(vectors)
        kernel = vectors[kept] @ vectors[kept].T + 0.3 * torch.eye(len(kept), dtype=torch.double)
        weights = torch.linalg.solve(kernel, vectors[kept] @ own.double())
        targets = torch.tensor(
            np.array([pairwise_cider(texts, model.frequencies, list(known.captions[one])).mean(1) for one in kept])
        )
        expected = targets.mean(0) + weights @ (targets - targets.mean(0))
        found = known.predict_likeness(texts, samples[row], features, row, model.frequencies, 0.3)
        assert found == pytest.approx(expected.tolist(), abs=1e-9)
    nothing = known.predict_likeness(texts, Sample("text", {}, "what?"), {}, 0, model.frequencies, 0.3)
    assert nothing == [0.0, 0.0, 0.0]


def test_the_regression_moves_the_choice_and_not_the_batch(
    model: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(model)[:5]
    decoding = Decoding(6, consensus=replace(HOW, neighbours=0, regression=8))
    together = model.answer(samples, decoding=decoding)
    assert [model.answer([sample], decoding=decoding)[0] for sample in samples] == together
    candidates: list[str] = []

    def last(_: Neighbours, texts: Sequence[str], *__: object) -> list[float]:
        candidates.append(max(texts))
        return [100.0 * (text == max(texts)) for text in texts]

    monkeypatch.setattr(Neighbours, "predict_likeness", last)
    assert [answer.strip() for answer in model.answer(samples, decoding=decoding)] == candidates


def test_an_index_of_references_gives_the_sums_of_the_pairs() -> None:
    documents = [["a dog runs .", "a dog a dog a dog"], ["the cat sits"], ["two dogs and a cat run", "", "a"]]
    frequencies = DocumentFrequencies.count([["a dog runs"], ["a dog sits"], ["a cat runs"], ["the dog", "cat"]])
    texts, weights = ["a dog and a dog run", "the cat", "", "unheard of"], np.array([0.5, -0.2, 2.0])
    expected = sum(
        weight * pairwise_cider(texts, frequencies, own).mean(1) for weight, own in zip(weights, documents, strict=True)
    )
    found = CiderIndex(documents, frequencies).weighted_sums(texts, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[0] > 0


def test_further_references_count_with_their_weights() -> None:
    frequencies = DocumentFrequencies.count([["a dog runs"], ["a dog sits"], ["a cat runs"], ["a cat sits"]])
    candidates = dict.fromkeys(["the dog jumps", "the dog jumps high", "one cat sleeps"], 1 / 3)
    assert most_typical(candidates, frequencies) != "one cat sleeps"
    near = {"one cat sleeps": 0.9, "nothing at all": 0.1}
    assert most_typical(candidates, frequencies, others=near) == "one cat sleeps"
    assert most_typical(candidates, frequencies, others={"one cat sleeps": 1e-3}) != "one cat sleeps"


def test_other_references_are_columns() -> None:
    frequencies = DocumentFrequencies.count([["a dog runs"], ["a dog sits"], ["a cat runs"]])
    texts, others = ["a dog", "a cat runs", ""], ["the dog runs", "a cat"]
    whole = pairwise_cider([*texts, *others], frequencies)
    np.testing.assert_allclose(pairwise_cider(texts, frequencies, others), whole[:3, 3:], rtol=1e-12)


def test_what_lacks_them_is_refused(model: AdaptedModel) -> None:
    neighbours, model.neighbours = model.neighbours, None
    with pytest.raises(UserError, match=r"captions of a run's training media: load the run with .*neighbours=3"):
        model.answer(samples_of(model)[:1], decoding=Decoding(6, consensus=HOW))
    predicted = Decoding(6, consensus=Consensus(samples=4, regression=8))
    with pytest.raises(UserError, match=r"captions of a run's training media: load the run with .*regression=8"):
        model.answer(samples_of(model)[:1], decoding=predicted)
    model.neighbours = neighbours
    stores: dict[str, Any] = {"image": model.stores["image"], "audio": model.stores["image"]}
    with pytest.raises(UserError, match=r"neighbours and regression are for runs with one encoder"):
        training_neighbours(model.recipe, stores)
    few = load_recipe({**model.recipe.model_dump(), "train": {"samples": 1, "steps": 1}})
    with pytest.raises(UserError, match="at least two training media"):
        training_neighbours(few, model.stores)
