"""Several tasks in one training: drawn by weight, whatever the batch and wherever a run is resumed; judged apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceptune.config.recipe import load_recipe
from perceptune.config.training import TrainConfig
from perceptune.data.build_task import make_task
from perceptune.data.tasks.mixture import Mixture
from perceptune.errors import UserError
from perceptune.models.run_folder import read_recipe
from perceptune.training.sampler import (
    BatchSampler,
    TextLengths,
    TokenBatchSampler,
    WeightedSampler,
    make_batch_sampler,
)

pytestmark = pytest.mark.usefixtures("own_cache")

SIZES = (40, 10, 50)
PARTS = np.repeat(np.arange(3), SIZES)


@pytest.mark.parametrize("weights", [(1, 1, 2), (3, 0.5, 1), (1, 1e-3, 1)])
def test_parts_are_drawn_by_their_weights(weights: tuple[float, ...]) -> None:
    draws = WeightedSampler(PARTS, weights, seed=3)
    counts = np.zeros(3)
    for epoch in range(50):
        indices, passes = draws.epoch(epoch)
        assert len(indices) == len(passes) == 100
        counts += np.bincount(PARTS[indices], minlength=3)
    shares = np.array(weights) / sum(weights)
    assert counts / counts.sum() == pytest.approx(shares, abs=2 / counts.sum())


def test_inside_a_part_every_sample_comes_once_a_pass() -> None:
    draws = WeightedSampler(PARTS, (1, 1, 2), seed=0)
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(8):
        seen.update(zip(*(values.tolist() for values in draws.epoch(epoch)), strict=True))
    assert set(seen.values()) == {1}
    whole = [passed for passed in range(20) if all((index, passed) in seen for index in range(40, 50))]
    assert whole == list(range(20)), "25 draws an epoch are two and a half passes over ten samples"


def test_weights_of_equal_parts_are_shuffled_and_seeded() -> None:
    first = WeightedSampler(PARTS, (1, 1, 1), seed=0).epoch(0)[0]
    assert (first == WeightedSampler(PARTS, (1, 1, 1), seed=0).epoch(0)[0]).all()
    assert (first != WeightedSampler(PARTS, (1, 1, 1), seed=1).epoch(0)[0]).any()
    assert len(set(PARTS[first[:30]])) == 3, "no part waits for another to end"
    again = [PARTS[WeightedSampler(PARTS, (2, 1, 1), seed=0).epoch(epoch)[0]] for epoch in (0, 1)]
    assert np.bincount(again[0]).tolist() == np.bincount(again[1]).tolist() == [50, 25, 25]
    assert (again[0] != again[1]).any(), "nor does the order of parts come again"


def test_sorted_by_length_a_sample_keeps_its_pass() -> None:
    lengths = np.random.default_rng(0).integers(3, 9, 100).astype(np.int32)
    order = TokenBatchSampler(TextLengths(lengths), 40, 5, WeightedSampler(PARTS, (1, 1, 2), 5))
    batches = round(order.batches_of(4))
    seen = Counter(position for batch in range(batches) for position in order.positions(batch))
    assert set(seen.values()) == {1}
    assert {passed for passed, index in seen if 40 <= index < 50} == set(range(10))


def test_a_part_of_which_nothing_is_left_gives_its_share_to_the_others() -> None:
    indices, _ = WeightedSampler(np.array([0, 0, 2, 2]), (1, 5, 1), seed=0).epoch(0)
    assert sorted(indices.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("budget", [None, 40])
def test_a_resumed_order_goes_on_exactly(budget: int | None) -> None:
    lengths = np.random.default_rng(0).integers(3, 9, 100).astype(np.int32)
    config = TrainConfig(batch_size=7, batch_tokens=budget)

    def order() -> Any:
        return make_batch_sampler(config, TextLengths(lengths), 5, WeightedSampler(PARTS, (1, 1, 2), 5))

    whole = order()
    assert isinstance(whole, BatchSampler if budget is None else TokenBatchSampler)
    batches = [whole.positions(batch) for batch in range(60)]
    for batch in (0, 13, 14, 15, 59):
        assert order().positions(batch) == batches[batch]


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two JSONL sets, `q` of four questions and `c` of two captions, on one picture."""
    (tmp_path / "a.png").touch()
    questions = [{"image": "a.png", "prompt": f"q{n}", "targets": ["x"]} for n in range(4)]
    captions = [{"image": "a.png", "targets": ["A dog.", "y"]} for _ in range(2)]
    for name, rows in (("q", questions), ("c", captions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mixture(sets: Path, **options: Any) -> dict[str, Any]:
    file, other = str(sets / "q.jsonl"), str(sets / "c.jsonl")
    captions = {"train": other, "test": other, "allow_empty_prompt": True, "prompt": "A pic of"}
    return {
        "name": "mixture",
        "parts": {
            "q": {"name": "jsonl", "train": file, "validation": file, "weight": 2, "prompt": "Q: {prompt}"},
            "c": {"name": "jsonl", **captions},
        },
        **options,
    }  # fmt: skip


def made(sets: Path, **options: Any) -> Mixture:
    task = make_task(load_recipe({"task": mixture(sets, **options)}))
    assert isinstance(task, Mixture)
    return task


def test_samples_and_splits_are_those_of_the_parts(sets: Path) -> None:
    task = made(sets)
    assert task.splits == ("train", "validation", "test")
    rows = task.samples("train")
    assert [row.id for row in rows] == [f"q/train-{n:06d}" for n in range(1, 5)] + ["c/train-000001", "c/train-000002"]
    assert [row.prompt for row in rows] == ["Q: q0", "Q: q1", "Q: q2", "Q: q3", "A pic of", "A pic of"]
    assert [rows[5].id, rows[0].id] == ["c/train-000002", "q/train-000001"]
    assert [row.id for row in task.samples("test")] == ["c/test-000001", "c/test-000002"]
    assert {task.part_of(row) for row in rows} == set(task.weights) == {"q", "c"}


def test_each_part_is_judged_by_itself(sets: Path) -> None:
    task = made(sets)
    rows = task.samples("train")
    scored = task.score(["x", "", "", "x.", "A dog", "no"], rows)
    assert scored.summary == {"q_accuracy": 0.5, "c_accuracy": 0.5}
    assert scored.per_sample == [*({"q_accuracy": v} for v in (1, 0, 0, 1)), *({"c_accuracy": v} for v in (1, 0))]
    assert task.metric == "q_accuracy"
    assert made(sets, metric="c_accuracy").metric == "c_accuracy"


def test_corpus_values_are_those_of_the_part_alone(sets: Path) -> None:
    (sets / "dataset_flickr8k.json").write_text(json.dumps({"images": [
        {"filename": f"{n}.jpg", "split": "val", "sentences": [{"raw": f"a dog number {n} runs on grass"}]}
        for n in range(3)
    ]}))  # fmt: skip
    captions = {"name": "flickr8k", "dir": str(sets), "check_files": False}
    parts = {"q": mixture(sets)["parts"]["q"], "c": captions}
    task = made(sets, parts=parts)
    rows = task.samples("validation")
    texts = [*"xxxx", "a dog number 0 runs", "a dog on grass", "x"]
    scored = task.score(texts, rows)
    alone = make_task(load_recipe({"task": captions})).score(texts[4:], rows[4:])
    assert {f"c_{key}" for key in alone.corpus} == set(scored.corpus)
    assert alone.corpus
    assert not any(corpus.statistics[:4].any() for corpus in scored.corpus.values()), "questions add nothing"
    for key, corpus in alone.corpus.items():
        mixed = scored.corpus[f"c_{key}"]
        assert mixed.value(mixed.statistics.sum(axis=0)) == pytest.approx(corpus.value(corpus.statistics.sum(axis=0)))
        assert scored.summary[f"c_{key}"] == alone.summary[key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {}}, "at least 1 item"),
        ({"parts": {"a": {"name": "mixture", "parts": {}}}}, "a mixture has no mixtures"),
        ({"parts": {"a/b": {"name": "jsonl"}}}, "a label has letters"),
        ({"parts": {"a": {"name": "jsonl", "train": "x", "weight": 0}}}, "greater than 0"),
        ({"parts": {"a": {"name": "jsonl", "train": "x", "prompt": "{promt}"}}}, "holds {prompt} once"),
        ({"parts": {"a": {"name": "jsonl", "train": "x", "tets": "x"}}}, r"part `a` \(`jsonl`\).*`tets`.*mean `test`"),
        ({"parts": {"a": {"name": "jsnl"}}}, "did you mean `jsonl`"),
        ({"parts": {"a": {"name": "nocaps", "dir": "x"}}}, "no part has a split `train`"),
    ],
)
def test_a_wrong_part_is_named(changes: dict[str, Any], message: str, sets: Path) -> None:
    with pytest.raises(UserError, match=message):
        made(sets, **changes)


def test_parts_files_are_found_beside_the_recipe_and_their_code_is_not_trusted(sets: Path, tmp_path: Path) -> None:
    text = "task: {name: mixture, parts: {q: {name: jsonl, train: q.jsonl}}}\n"
    (sets / "mine.yaml").write_text(text)
    assert len(make_task(load_recipe(sets / "mine.yaml")).samples("train")) == 4
    (sets / "run.yaml").write_text(text.replace("jsonl, train", "json.tool, train"))
    with pytest.raises(UserError, match=r"`json\.tool` is third-party code"):
        read_recipe(sets)
