"""Consensus decoding that also compares candidates with captions of the nearest training media."""

from __future__ import annotations

import math
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
from perceptune.data.metrics.base import DocumentFrequencies, pairwise_cider
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.models.consensus import most_typical
from perceptune.models.document_frequencies import training_frequencies
from perceptune.models.neighbours import read_neighbours, training_neighbours, write_neighbours
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
    model.neighbours = neighbours
    stores: dict[str, Any] = {"image": model.stores["image"], "audio": model.stores["image"]}
    with pytest.raises(UserError, match=r"decode\.consensus\.neighbours: for runs with one encoder"):
        training_neighbours(model.recipe, stores)
    few = load_recipe({**model.recipe.model_dump(), "train": {"samples": 1, "steps": 1}})
    with pytest.raises(UserError, match="at least two training media"):
        training_neighbours(few, model.stores)
