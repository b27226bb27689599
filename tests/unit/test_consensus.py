"""Consensus decoding: the candidate that is most like the others, whatever their order and batch."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import perceptune
import support
from perceptune.config.recipe import load_recipe
from perceptune.data.build_task import make_task
from perceptune.data.metrics.base import DocumentFrequencies, pairwise_cider
from perceptune.data.metrics.caption import Options, score
from perceptune.errors import UserError
from perceptune.models.base import AdaptedModel
from perceptune.models.consensus import most_typical
from perceptune.models.conversation import Conversation
from perceptune.models.document_frequencies import read_frequencies, training_frequencies, write_frequencies
from perceptune.models.run_location import FREQUENCIES
from perceptune.types import Consensus, Decoding, Sample

WORDS = ["a", "dog", "the", "cat", "runs", "on", "grass", "red", ",", "with", "two", "men", ".", "brown's", "water"]
HOW = Consensus(samples=6, temperature=1.5, beams=3)


def texts(count: int, seed: int = 0, longest: int = 9) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(0, longest))) for _ in range(count)]


def corpus(seed: int = 1) -> list[list[str]]:
    lines = [f"a {line}" for line in texts(90, seed)]
    return [lines[start : start + 3] for start in range(0, 90, 3)]


def test_it_is_the_cider_of_the_metric(tmp_path: Path) -> None:
    """Each text against each other as the only reference, with document frequencies of another file."""
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"references": one}) + "\n" for one in corpus()))
    given = ["a dog", "dog", "unheard-of words here", *(line or "men" for line in texts(9, 2))]
    found = pairwise_cider(given, DocumentFrequencies.count(corpus()))
    for row, text in enumerate(given):
        whole = score([text] * len(given), [[one] for one in given], Options(df=str(file), tokenizer="ptb"))
        np.testing.assert_allclose(found[row], [one["CIDEr"] for one in whole.per_sample], rtol=1e-10, atol=1e-12)
    assert 0 < found.max() <= 10 + 1e-9


def test_many_texts_need_little_memory() -> None:
    """Not a number for each pair of texts and n-gram: 1,024 samples would take tens of gigabytes."""
    words = [f"w{number}" for number in range(100)]
    chance = random.Random(0)
    many = [" ".join(chance.choices(words, k=12)) for _ in range(150)]
    frequencies = DocumentFrequencies.count([[text] for text in many])
    tracemalloc.start()
    try:
        pairwise_cider(many, frequencies)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


def test_texts_without_blanks_are_compared_by_characters() -> None:
    counted = DocumentFrequencies.count([["一只狗在草地上跑"], ["一只猫在草地上"], ["两个人"]])
    assert counted.tokenizer == "characters"
    found = pairwise_cider(["一只狗在跑", "一只狗", "两个人"], counted)
    assert found[0, 1] > 0 == found[0, 2]


def test_nothing_is_compared_with_nothing() -> None:
    found = pairwise_cider(["", "a dog", "."], DocumentFrequencies.count(corpus()))
    assert np.isfinite(found).all()
    assert found[0].max() == found[:, 0].max() == 0
    with pytest.raises(ValueError, match="no references"):
        DocumentFrequencies.count([])


def test_one_candidate_is_the_answer() -> None:
    frequencies = DocumentFrequencies.count(corpus())
    for text in ("a dog runs", "", "unheard-of"):
        assert most_typical({text: 1.0}, frequencies) == text


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_candidates_does_not_matter(seed: int) -> None:
    """Neither of those with different weights: the same bits are added in the same order."""
    frequencies, chance = DocumentFrequencies.count(corpus()), random.Random(seed)
    candidates = list(dict.fromkeys(texts(12, seed)))
    weights = {text: chance.random() for text in candidates}
    chosen = most_typical(weights, frequencies)
    for _ in range(10):
        chance.shuffle(candidates)
        assert most_typical({text: weights[text] for text in candidates}, frequencies) == chosen
    for strangers in (["pqr", "stu"], ["stu", "pqr"]):  # equal scores
        assert most_typical(dict.fromkeys(strangers, 0.5), frequencies) == "pqr"


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_has_the_highest_mean_to_the_others(seed: int) -> None:
    frequencies = DocumentFrequencies.count(corpus())
    candidates = list(dict.fromkeys(texts(10, 40 + seed)))
    scores = pairwise_cider(candidates, frequencies)
    means = {
        one: sum(scores[row, column] for column in range(len(candidates)) if column != row)
        for row, one in enumerate(candidates)
    }
    chosen = most_typical(dict.fromkeys(candidates, 1 / len(candidates)), frequencies)
    assert means[chosen] == pytest.approx(max(means.values()))


def test_weights_count_and_equal_ones_follow_the_preferred() -> None:
    frequencies = DocumentFrequencies.count([["a dog runs"], ["a dog sits"], ["a cat runs"], ["a cat sits"]])
    a, b = ("the dog jumps", "the dog jumps high"), ("one cat sleeps", "one cat sleeps long")
    for heavy in (a, b):
        weights = {text: 10.0 if text in heavy else 0.1 for text in (*a, *b)}
        assert most_typical(weights, frequencies) in heavy
    strangers = dict.fromkeys(["pqr", "stu", "vwx"], 1 / 3)  # no word in common: nothing is more typical
    assert most_typical(strangers, frequencies) == "pqr"
    assert most_typical(strangers, frequencies, "vwx") == "vwx"


def test_frequencies_are_of_the_media_that_are_trained_on(dwarfs: Path, tmp_path: Path) -> None:
    """All captions of a medium are one document, whichever rows they are in; other samples are not counted."""
    data = support.save_data(tmp_path, rows=8)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    images = [row["image"] for row in rows]
    for number, row in enumerate(rows):
        row |= {"image": images[number // 2], "targets": ["a dog", f"word{number} cat"]}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data)
    whole = training_frequencies(load_recipe(given))
    assert (whole.documents, whole.counts["a dog"], whole.counts["cat"]) == (4, 4, 4)
    assert "word1 cat" not in whole.counts, "of one document, as if never seen"
    part = load_recipe({**given, "train": support.train_section(samples=2)})
    assert training_frequencies(part).documents <= 2


def test_stored_frequencies_are_what_was_counted(tmp_path: Path) -> None:
    counted = DocumentFrequencies.count(corpus())
    write_frequencies(tmp_path, counted)
    again = read_frequencies(tmp_path / FREQUENCIES)
    assert (again, again.digest()) == (counted, counted.digest())
    for damage in ("", "[]", "{}", '{"documents": 3, "tokenizer": "ptb"}', '{"documents": 0, "tokenizer": "ptb", '
                   '"counts": {}}', '{"documents": 3, "tokenizer": "none", "counts": {}}'):  # fmt: skip
        (tmp_path / FREQUENCIES).write_text(damage)
        with pytest.raises(UserError, match=f"{FREQUENCIES}: damaged"):
            read_frequencies(tmp_path / FREQUENCIES)


@pytest.fixture(scope="module")
def asked(dwarfs: Path) -> tuple[AdaptedModel, list[Sample]]:
    model = perceptune.build(support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl"))
    model.frequencies = DocumentFrequencies(20, "characters", {"a": 12, "b": 7, "c d": 3})
    return model, list(make_task(model.recipe).samples("train"))


def test_an_answer_depends_on_seed_question_and_medium_alone(asked: tuple[AdaptedModel, list[Sample]]) -> None:
    model, samples = asked
    decoding = Decoding(6, consensus=HOW)
    together = model.answer(samples, decoding=decoding)
    assert [model.answer([sample], decoding=decoding)[0] for sample in samples] == together
    for size in (1, 14, 100):
        assert model.answer(samples[::-1], decoding=decoding, batch_size=size) == together[::-1]
    assert model.answer(samples, decoding=replace(decoding, seed=4)) != together
    assert together != model.answer(samples, decoding=Decoding(6, beams=3)), "not the best beam"


def test_the_answer_is_one_of_beams_and_samples(asked: tuple[AdaptedModel, list[Sample]]) -> None:
    """Literally: all beams and distinct samples of each row alone, and the metric between them."""
    model, samples = asked
    assert model.frequencies is not None
    decoding = Decoding(6, consensus=HOW, seed=2)
    others = 0
    for sample, answer in zip(samples, model.answer(samples, decoding=decoding), strict=True):
        beams = model.generate([sample], Decoding(6, beams=3), num_return_sequences=3)
        assert len({tuple(one) for one in beams}) == 3
        assert beams[:1] == model.generate([sample], Decoding(6, beams=3)), "best first"
        drawing = Decoding(6, sample=True, temperature=1.5)
        drawn = [model.generate([sample], drawing, seeds=[(2 << 16) + number])[0] for number in range(1, 7)]
        candidates = list(dict.fromkeys(model.text.decode(one).strip() for one in [*beams, *drawn]))
        scores = pairwise_cider(candidates, model.frequencies)
        np.fill_diagonal(scores, 0)
        best = scores.sum(1).max()
        assert scores.sum(1)[candidates.index(answer.strip())] == pytest.approx(best)
        others += answer.strip() != candidates[0]
    assert others, "the best beam is not always chosen"


def test_media_are_encoded_once_for_all_candidates(
    asked: tuple[AdaptedModel, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = asked
    encode, rows = type(model).encode, list[int]()

    def counted(self: AdaptedModel, given: list[Sample], *rest: object) -> object:
        rows.append(len(given))
        return encode(self, given, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model), "encode", counted)
    model.answer(samples, decoding=Decoding(6, consensus=HOW), batch_size=5)
    assert sum(rows) == len(samples)


def test_probabilities_are_those_of_the_candidates_as_targets(
    asked: tuple[AdaptedModel, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space in front that an answer is generated with belongs to the template of targets."""
    model, samples = asked
    ranked: list[list[str]] = []

    def rank(given: list[Sample], candidates: list[list[str]]) -> list[list[float]]:
        ranked.extend(candidates)
        return [[0.0] * len(own) for own in candidates]

    monkeypatch.setattr(model, "rank", rank)
    decode = model.text.decode
    monkeypatch.setattr(model.text, "decode", lambda ids: f" {decode(ids)}")
    model.answer(samples, decoding=Decoding(6, consensus=replace(HOW, weights="probability")))
    assert len(ranked) == len(samples)
    assert all(text == text.strip() for own in ranked for text in own)


def test_probabilities_of_candidates_may_be_their_weights(asked: tuple[AdaptedModel, list[Sample]]) -> None:
    model, samples = asked
    weighted = Decoding(6, consensus=replace(HOW, weights="probability"))
    together = model.answer(samples, decoding=weighted)
    assert together != model.answer(samples, decoding=Decoding(6, consensus=HOW))
    assert model.answer(samples[::-1], decoding=weighted, batch_size=1) == together[::-1]


def test_one_candidate_is_what_is_generated_without(asked: tuple[AdaptedModel, list[Sample]]) -> None:
    """A cold sample and a single beam are greedy decoding."""
    model, samples = asked
    cold = Decoding(6, consensus=Consensus(samples=1, temperature=1e-4, beams=1))
    assert model.answer(samples, decoding=cold) == model.answer(samples, decoding=Decoding(6))


def test_it_is_off_by_default_and_its_keys_are_checked() -> None:
    assert load_recipe({}).decode.consensus is None
    [by_key] = [load_recipe({}, ["decode.consensus.samples=8"]).decode.consensus]
    assert by_key is not None
    assert (by_key.samples, by_key.beams, by_key.temperature) == (8, 3, 0.7)
    assert load_recipe({"decode": {"consensus": {}}}, ["decode.consensus=null"]).decode.consensus is None
    with pytest.raises(UserError, match="`consensus` draws candidates of its own"):
        load_recipe({"decode": {"sample": True, "consensus": {}}})
    with pytest.raises(UserError, match=r"decode\.consensus\.sample.*did you mean.*samples"):
        load_recipe({"decode": {"consensus": {"sample": 3}}})


def test_what_needs_one_generation_refuses_it(asked: tuple[AdaptedModel, list[Sample]]) -> None:
    model, samples = asked
    decoding = Decoding(6, consensus=HOW)
    with pytest.raises(UserError, match=r"decode\.consensus: not for conversations; set decode\.consensus=null"):
        Conversation(model, decoding=decoding)
    with pytest.raises(UserError, match=r"decode\.consensus: not for log-probabilities"):
        model.token_logprobs(samples[:1], decoding=decoding)
    frequencies, model.frequencies = model.frequencies, None
    with pytest.raises(UserError, match=r"load the run with overrides=.*consensus\.samples=6"):
        model.answer(samples[:1], decoding=decoding)
    model.frequencies = frequencies
