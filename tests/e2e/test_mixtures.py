"""A training on a mixture of data sets: resumed as any other, each part judged by its own metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import perceptune
import support
from perceptune.config.recipe import Recipe, validate
from perceptune.data.build_task import make_task
from perceptune.training.training_set import training_set
from runs import recipe, same, stop_after
from support import train_section


@pytest.fixture
def mixed(dwarfs: Path, tmp_path: Path) -> dict[str, Any]:
    """Questions of the dwarfs' own, and captions of their pictures in Karpathy's form."""
    pictures = [
        {"filename": f"train{n}.png", "split": split, "sentences": [{"raw": f"a {word} dot"}, {"raw": word}]}
        for n, (split, word) in enumerate([("train", "red"), ("train", "green"), ("val", "blue"), ("val", "gray")])
    ]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": pictures}))
    file, pictures_dir = str(dwarfs / "data/train.jsonl"), str(dwarfs / "data")
    parts: dict[str, Any] = {
        "q": {"name": "jsonl", "train": file, "validation": file, "prompt": "Question: {prompt} Answer:"},
        "c": {"name": "flickr8k", "dir": str(tmp_path), "media": pictures_dir, "template": "{name}", "weight": 3,
              "prompt": "A picture of"},
    }  # fmt: skip
    return recipe(dwarfs, task={"name": "mixture", "parts": parts}, text={"template": "{prompt}"})


def test_a_mixture_is_trained_resumed_and_judged(mixed: dict[str, Any], tmp_path: Path) -> None:
    perceptune.train(mixed, tmp_path / "whole")
    stop_after(mixed, tmp_path / "cut", steps=4)
    perceptune.train(mixed, tmp_path / "cut", resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    results = perceptune.evaluate(tmp_path / "whole", split="validation")
    assert {"q_accuracy", "q_accuracy_color", "c_CIDEr", "c_BLEU-4"} < set(results["metrics"])
    assert "q_accuracy_interval" in results
    rows = [json.loads(line) for line in (tmp_path / "whole/predictions.jsonl").read_text().splitlines()]
    assert [row["id"].partition("/")[0] for row in rows].count("c") == 2


@pytest.mark.parametrize("hold_out", [None, 1])
def test_training_draws_by_the_weights(hold_out: int | None, mixed: dict[str, Any]) -> None:
    model = perceptune.build(mixed)
    task = make_task(validate(Recipe, {**mixed, "train": {"hold_out": hold_out}}, "test"))
    chosen = training_set(model, task)
    samples, draws = chosen.samples, chosen.draws
    assert draws is not None
    drawn = [samples[index].id[0] for epoch in range(20) for index in draws.epoch(epoch)[0]]
    assert drawn.count("c") / len(drawn) == pytest.approx(0.75, abs=0.01)


def test_a_run_on_a_mixture_is_evaluated_on_any_other(mixed: dict[str, Any], dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train({**mixed, "train": train_section(steps=1)}, tmp_path / "run")
    file = str(dwarfs / "data/train.jsonl")
    other = support.save_data(tmp_path / "other", rows=3)
    for parts, learned in (
        ({"q": {"name": "jsonl", "train": file}}, True),
        ({"x": {"name": "jsonl", "train": str(other)}}, False),
    ):
        found = perceptune.evaluate(
            tmp_path / "run", task={"name": "mixture", "parts": parts}, split="train", into=tmp_path / "out"
        )
        assert found["trained_on_this_split"] == learned
        assert json.loads((tmp_path / "out/results.json").read_text()) == found
