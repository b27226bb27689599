"""Caption metrics: coco-caption's recorded values, its formulas written out, and what holds for all captions."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceptune.data.metrics import caption
from perceptune.data.metrics.base import Scored
from perceptune.data.metrics.caption import Options
from perceptune.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/captions.json").read_text(encoding="utf-8"))
BLEUS = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
KEYS = [*BLEUS, "ROUGE-L", "CIDEr"]
TEXT = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "the", "grass", "red"]), max_size=8).map(" ".join)
SETS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=5)
STEADY = settings(deadline=None, derandomize=True, database=None, max_examples=100)
Pairs = list[tuple[str, list[str]]]


def score(pairs: Pairs, **options: str) -> Scored:
    given = Options.model_validate(options)
    return caption.score([text for text, _ in pairs], [texts for _, texts in pairs], given)


def recorded() -> Pairs:
    return [(row["hyp"], row["refs"]) for row in GOLDEN["data"].values()]


def named(row: dict[str, float]) -> dict[str, float]:
    """pycocoevalcap's keys in our words."""
    return {key.replace("Bleu_", "BLEU-").replace("ROUGE_L", "ROUGE-L"): value for key, value in row.items()}


def test_recorded_values() -> None:
    scored = score(recorded())
    assert list(scored.summary) == KEYS
    assert scored.summary == pytest.approx(named(GOLDEN["corpus"]), rel=1e-9)
    for row, expected in zip(scored.per_sample, GOLDEN["per_image"].values(), strict=True):
        assert row == pytest.approx(named(expected), rel=1e-9)


def test_tokens_given_as_they_are() -> None:
    tokens = [(row["hyp_tok"], row["refs_tok"]) for row in GOLDEN["data"].values()]
    assert score(tokens, tokenizer="none").summary == score(recorded()).summary
    assert score(recorded(), tokenizer="none").summary["CIDEr"] < score(recorded()).summary["CIDEr"] - 0.1


def grams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def plain_bleu(pairs: Pairs, order: int) -> float:
    length = reference_length = 0
    product = 1.0
    for n in range(1, order + 1):
        matched = guessed = 0
        for text, texts in pairs:
            most = Counter[tuple[str, ...]]()
            for reference in texts:
                most |= grams(reference, n)
            matched += (grams(text, n) & most).total()
            guessed += grams(text, n).total()
        product *= (matched + 1e-15) / (guessed + 1e-9)
    for text, texts in pairs:
        own = len(text.split())
        length += own
        reference_length += min((abs(len(one.split()) - own), len(one.split())) for one in texts)[1]
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)


def plain_cider(pairs: Pairs) -> list[float]:
    def vector(text: str, n: int) -> dict[tuple[str, ...], float]:
        containing = {g: sum(any(g in grams(one, n) for one in texts) for _, texts in pairs) for g in grams(text, n)}
        return {g: k * math.log(len(pairs) / max(1, containing[g])) for g, k in grams(text, n).items()}

    def alike(text: str, reference: str, n: int) -> float:
        a, b = vector(text, n), vector(reference, n)
        norm = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
        difference = max(0, len(text.split()) - 1) - max(0, len(reference.split()) - 1)
        dot = sum(min(a[g], b[g]) * b[g] for g in a if g in b)
        return dot / norm * math.exp(-(difference**2) / 72) if norm else 0.0

    return [10 * float(np.mean([alike(text, one, n) for one in texts for n in range(1, 5)])) for text, texts in pairs]


def plain_rouge_l(text: str, texts: list[str]) -> float:
    def common(a: list[str], b: list[str]) -> int:
        rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
        return rows[-1][-1]

    own = text.split(" ")
    pairs = [(common(own, one.split(" ")), len(one.split(" "))) for one in texts]
    precision, recall = max(c for c, _ in pairs) / len(own), max(c / n for c, n in pairs)
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision else 0.0


@STEADY
@given(SETS)
def test_they_are_the_formulas(pairs: Pairs) -> None:
    scored = score(pairs)
    for order, key in enumerate(BLEUS, 1):
        assert scored.summary[key] == pytest.approx(plain_bleu(pairs, order), rel=1e-9, abs=1e-30)
        alone = [plain_bleu([pair], order) for pair in pairs]
        assert [row[key] for row in scored.per_sample] == pytest.approx(alone, rel=1e-9, abs=1e-30)
    assert [row["CIDEr"] for row in scored.per_sample] == pytest.approx(plain_cider(pairs), rel=1e-9, abs=1e-12)
    assert [row["ROUGE-L"] for row in scored.per_sample] == pytest.approx([plain_rouge_l(*pair) for pair in pairs])


@STEADY
@given(SETS)
def test_nothing_depends_on_how_samples_and_references_are_ordered_or_repeated(pairs: Pairs) -> None:
    scored = score(pairs)
    turned = score([(text, texts[::-1]) for text, texts in pairs[::-1]])
    twice = score([(text, texts * 2) for text, texts in pairs])
    for other in (turned, twice):
        assert other.summary == pytest.approx(scored.summary, rel=1e-9, abs=1e-12)
    assert [*turned.per_sample[::-1]] == [pytest.approx(row, rel=1e-9, abs=1e-12) for row in scored.per_sample]


@STEADY
@given(SETS)
def test_bounds_and_means(pairs: Pairs) -> None:
    scored = score(pairs)
    for row in (scored.summary, *scored.per_sample):
        assert list(row) == KEYS
        assert all(0 <= row[key] <= (10 if key == "CIDEr" else 1) + 1e-9 for key in KEYS)
    for key in ("ROUGE-L", "CIDEr"):
        assert scored.summary[key] == pytest.approx(np.mean([row[key] for row in scored.per_sample]))


@STEADY
@given(SETS)
def test_bleu_of_any_part_can_be_made_of_its_statistics(pairs: Pairs) -> None:
    scored = score(pairs)
    assert list(scored.corpus) == BLEUS, "the others are means"
    part = pairs[: len(pairs) // 2 + 1]
    for key, corpus in scored.corpus.items():
        value = corpus.value(corpus.statistics[: len(part)].sum(axis=0))
        assert value == pytest.approx(score(part).summary[key], rel=1e-12)


def test_perfect_captions() -> None:
    texts = ["a dog runs over grass", "two men play a guitar", "rain falls on the roof"]
    scored = score([(text, [text, text]) for text in texts])
    assert scored.summary == pytest.approx(dict.fromkeys(KEYS, 1.0) | {"CIDEr": 10.0}, rel=1e-8)


def test_long_captions() -> None:
    """More words than a machine number has bits."""
    words = [f"w{i}" for i in range(150)]
    row = score([(" ".join(words), [" ".join(words[::2])]), ("x", ["x"])]).per_sample[0]
    assert row["ROUGE-L"] == pytest.approx(2.44 * 0.5 / (1 + 1.44 * 0.5))


def test_empty_captions() -> None:
    """To coco-caption an empty caption is one empty word, for ROUGE-L."""
    rows = score([("", ["a dog"]), ("...", ["", "a"]), ("a dog", [""]), ("a cat", ["a cat"])]).per_sample
    assert rows[0] == pytest.approx(dict.fromkeys(KEYS, 0), abs=1e-5)
    assert [row["ROUGE-L"] for row in rows] == [0, 1, 0, 1]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(math.isfinite(value) for value in score([("", [""])]).summary.values())


def test_frequencies_of_a_fixed_corpus(tmp_path: Path) -> None:
    """A part of a set, with the frequencies of all of it, scores as it does within the set."""
    pairs, corpus = recorded(), tmp_path / "all.jsonl"
    keys = ["references", "captions", "targets"]
    rows = [json.dumps({keys[i % 3]: texts, "id": i}) for i, (_, texts) in enumerate(pairs)]
    corpus.write_text("\n\n".join(rows), encoding="utf-8")
    whole, part = score(pairs), score(pairs[:2], df=str(corpus))
    assert [row["CIDEr"] for row in part.per_sample] == pytest.approx([row["CIDEr"] for row in whole.per_sample[:2]])
    assert score(pairs[:2]).summary["CIDEr"] != pytest.approx(part.summary["CIDEr"], rel=0.01)
    assert {key: part.summary[key] for key in BLEUS} == {key: score(pairs[:2]).summary[key] for key in BLEUS}
    assert part.definition["df"]["documents"] == len(pairs)
    assert part.definition["df"]["source"] == str(corpus)
    assert len(part.definition["df"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no references"),
        ('{"references": ["a"]}\n{"refrences": ["b"]}', "line 2: no key .* did you mean `references`"),
        ('{"references": ["a", 5]}', r"line 1: `references\[1\]` is a number"),
        ('{"references": []}', "line 1: `references` is empty"),
        ("a dog", "line 1: invalid JSON"),
    ],
)
def test_mistakes_in_the_corpus(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "df.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"df\.jsonl.*{message}"):
        score(recorded(), df=str(tmp_path / "df.jsonl"))


def test_no_corpus_and_nothing_to_score(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl: No such file"):
        score(recorded(), df=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="nothing to score"):
        score([])
    with pytest.raises(ValueError, match="sample 1 has no references"):
        score([("a", ["a"]), ("b", [])])


def test_a_result_says_how_it_was_made() -> None:
    definition = score(recorded()).definition
    assert (definition["tokenizer"], definition["df"]) == ("ptb", {"source": "references", "documents": 8})
    assert definition["references"] == {"min": 2, "max": 5, "mean": 3.375}
    assert definition["scale"]["CIDEr"] == [0, 10]
    assert "8 documents" in definition["caution"]
    assert "caution" not in score([("a dog", ["a dog"])] * 100).definition
    json.dumps(definition)
