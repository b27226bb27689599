"""Training on dwarfs through the public API: what it writes, what it refuses, errors that leave a good run behind."""

from __future__ import annotations

import errno
import json
import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import perceptune
import support
from perceptune.errors import UserError
from perceptune.models.run_folder import METHOD
from perceptune.models.text_format import Batch
from perceptune.training import reward
from perceptune.training.batch_loader import BatchLoader
from perceptune.training.optimizer import MethodOptimizer, add_gradients
from perceptune.training.validation import Validator
from perceptune.utils.run_log import read_log
from runs import recipe, same, stop_after, tensors
from support import train_section


def test_a_method_learns_and_its_run_explains_itself(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs, train=train_section(steps=150, batch_size=8, save_every=150)), tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run") if row["event"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    results = perceptune.evaluate(tmp_path / "run", control=True)
    assert results["accuracy"] > results["accuracy_shuffled"]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "run.yaml", "meta.json", "method.safetensors", "log.jsonl", "checkpoints", "results.json",
        "predictions.jsonl", "predictions_shuffled.jsonl", "README.md", "proof.json", ".lock",
    }  # fmt: skip
    meta = json.loads((tmp_path / "run/meta.json").read_text())
    model = perceptune.load(tmp_path / "run")
    assert meta["trained"] == sum(p.numel() for p in model.method.parameters())
    assert set(load_file(tmp_path / "run" / METHOD)) == set(model.method.state_dict())


def test_a_loaded_run_answers_as_eval_wrote(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs), tmp_path / "run")
    perceptune.evaluate(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    model = perceptune.load(tmp_path / "run")
    for row in rows:
        media = {"image": Path(row["media"]["image"])}
        assert model.answer([perceptune.Sample("x", media, row["prompt"])]) == [row["raw"]]
        as_bytes = {"image": media["image"].read_bytes()}
        assert model.answer([perceptune.Sample("x", as_bytes, row["prompt"])]) == [row["raw"]]


def test_accumulation_equals_one_large_batch(dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers differ in length: only weighting by tokens makes the two the same."""
    once = {"steps": 3, "lr": 1e-3, "prompt_lr": 1e-3, "warmup_steps": 0}
    divide, divided = MethodOptimizer.scale_grads, list[float]()
    monkeypatch.setattr(MethodOptimizer, "scale_grads", lambda self, by: (divided.append(by), divide(self, by)))
    perceptune.train(recipe(dwarfs, train={**once, "batch_size": 6}), tmp_path / "large")
    tokens = [row["tokens"] for row in read_log(tmp_path / "large") if row["event"] == "step"]
    assert tokens == divided, "Adam alone would not tell a gradient of a wrong scale"
    assert sum(tokens[:2]) == 3 * sum(len(f" {color}") + 1 for color in support.COLORS), "an epoch: answers with ends"
    perceptune.train(recipe(dwarfs, train={**once, "batch_size": 2, "accumulate": 3}), tmp_path / "small")
    large, small = tensors(tmp_path / "large"), tensors(tmp_path / "small")
    assert all(torch.allclose(large[name], small[name], atol=1e-5) for name in large)


@pytest.mark.parametrize("ahead", [True, None])
def test_nothing_is_prepared_past_the_last_step(dwarfs: Path, tmp_path: Path, ahead: bool | None) -> None:
    original, prepared = BatchLoader._collated, []

    def prepare(self: BatchLoader, step: int) -> Any:
        prepared.append((step, threading.current_thread() is threading.main_thread()))
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchLoader, "_collated", prepare)
        perceptune.train(recipe(dwarfs, train=train_section(prefetch=ahead)), tmp_path / "run")
    in_step = ahead is None  # on a CPU nothing is prepared in the background unless asked for
    assert prepared == [(0, True), *((step, in_step) for step in range(1, 6))]


def test_the_fast_path_equals_the_plain_path(dwarfs: Path) -> None:
    placed = {"name": "epalm", "n_levels": 2, "prompt": "plain", "prompt_at": "first_injected"}
    for method in (placed, {"name": "epalm-lin", "n_levels": 2}):
        model = perceptune.build(recipe(dwarfs, method=method))
        samples = _samples(dwarfs)
        batch = model.collate(samples)
        results = []
        for plain in (False, True):
            model.use_reference_path = plain
            loss, count = model.loss(batch)
            (loss / count).backward()
            results.append((loss, [p.grad.clone() for p in model.method.parameters() if p.grad is not None]))
            model.zero_grad()
        (fast, fast_grads), (slow, slow_grads) = results
        assert abs(float((fast - slow).detach())) < 1e-4
        assert len(fast_grads) == len(slow_grads) > 0
        assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(fast_grads, slow_grads, strict=True))


def _samples(dwarfs: Path) -> list[perceptune.Sample]:
    from perceptune.data.build_task import make_task

    return list(make_task(perceptune.load_recipe(recipe(dwarfs))).samples("train"))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update(dwarfs: Path, tmp_path: Path, what: str) -> None:
    original, steps = add_gradients, count()

    def spoiled(model: Any, *given: Any) -> tuple[list[Any], int, int]:
        losses, tokens, samples = original(model, *given)
        is_due = next(steps) == 4
        if is_due and what == "gradient":  # a backward pass may overflow where the loss does not
            next(model.method.parameters()).grad[0, 0] = float("inf")
        return [float("nan")] if is_due and what == "loss" else losses, tokens, samples

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "add_gradients", spoiled)
        words = {"loss": "loss is nan", "gradient": "gradient's norm is inf"}[what]
        with pytest.raises(UserError, match=words + " at step 5.*last good checkpoint is .*step-00000004"):
            perceptune.train(recipe(dwarfs), tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path / "run").values())
    assert perceptune.load(tmp_path / "run").answer(_samples(dwarfs)[:1])


def test_out_of_memory_says_what_to_lower(dwarfs: Path, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "add_gradients", full)
        with pytest.raises(UserError, match=r"out of memory: lower `train.batch_size` \(now 2\)"):
            perceptune.train(recipe(dwarfs), tmp_path / "run")


def test_broken_media_are_counted_against_a_limit(dwarfs: Path, tmp_path: Path) -> None:
    data = support.save_data(tmp_path / "data", rows=8)
    (tmp_path / "data/train3.png").write_bytes(b"not a picture")
    (tmp_path / "data/train5.png").unlink()
    strict = support.recipe(dwarfs / "lm", dwarfs / "encoder", data)
    with pytest.raises(UserError, match=r"train5\.png"):
        perceptune.train(strict, tmp_path / "strict")
    tolerant = {**strict, "train": train_section(steps=8, max_bad_media=2)}
    perceptune.train(tolerant, tmp_path / "tolerant")
    listed = [json.loads(line) for line in (tmp_path / "tolerant/bad_media.jsonl").read_text().splitlines()]
    assert {Path(row["medium"]).name for row in listed} == {"train3.png", "train5.png"}
    with pytest.raises(UserError, match=r"`train\.max_bad_media` allows 1"):
        perceptune.train({**strict, "train": train_section(steps=8, max_bad_media=1)}, tmp_path / "limit")
    with pytest.raises(UserError, match=r"`train\.max_bad_media` allows 1"):  # and resuming does not get around it
        perceptune.train(None, tmp_path / "limit", resume=True)


def test_the_best_method_is_kept_and_patience_ends_the_run(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As good as the best is no gain."""
    values = iter([0.2, 0.6, 0.1, 0.6])
    monkeypatch.setattr(Validator, "validate", lambda self, step: SimpleNamespace(summary={"accuracy": next(values)}))
    early = {"every": 2, "patience": 2, "during_samples": 4}
    given = recipe(dwarfs, train=train_section(steps=40), eval=early)
    result = perceptune.train(given, tmp_path / "run")
    points = [(row["step"], row["accuracy"]) for row in read_log(tmp_path / "run") if row["event"] == "eval"]
    assert points == [(2, 0.2), (4, 0.6), (6, 0.1), (8, 0.6)]
    assert (result.best, result.steps) == (0.6, 8)
    [last] = (tmp_path / "run/checkpoints").iterdir()
    assert (tmp_path / "run" / METHOD).read_bytes() != (last / METHOD).read_bytes(), "the best one, not the last"


def test_bfloat16_trains_and_the_run_answers_in_float32(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs, train=train_section(precision="bfloat16")), tmp_path / "run")
    assert all(torch.isfinite(t).all() and t.dtype == torch.float32 for t in tensors(tmp_path / "run").values())
    assert perceptune.load(tmp_path / "run").lm.dtype == torch.float32


@pytest.mark.parametrize("evaluated", [{}, {"every": 2}], ids=["plain", "evaluated"])
def test_zero_steps_train_nothing(dwarfs: Path, tmp_path: Path, evaluated: dict[str, Any]) -> None:
    perceptune.train(recipe(dwarfs, train=train_section(steps=0), eval=evaluated), tmp_path / "run")
    model = perceptune.build(recipe(dwarfs))
    stored = tensors(tmp_path / "run")
    assert all(torch.equal(stored[name], p) for name, p in model.method.named_parameters())
    assert perceptune.load(tmp_path / "run").method is not None


def test_a_checkpoint_before_the_first_evaluation_gives_a_usable_run(dwarfs: Path, tmp_path: Path) -> None:
    """The first evaluation replaces its method."""
    given = recipe(dwarfs, eval={"every": 5, "during_samples": 2})
    stop_after(given, tmp_path / "run", steps=3)
    assert perceptune.load(tmp_path / "run").method is not None
    perceptune.train(None, tmp_path / "run", resume=True)
    perceptune.train(given, tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")


def test_an_error_inside_a_batch_leaves_the_model_without_dropout(
    dwarfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = perceptune.build(recipe(dwarfs, train=train_section(frozen_dropout="official")))
    model.eval()
    batch = model.collate(_samples(dwarfs)[:2])
    monkeypatch.setattr(model, "loss", _broken)
    with pytest.raises(UserError, match="broken"):
        add_gradients(model, [batch])
    assert not model.method.training
    assert not model.lm.model.training


def _broken(_: Batch) -> None:
    raise UserError("broken")


def test_the_papers_small_configuration_runs_on_dwarfs_of_its_architectures(dwarfs: Path, tmp_path: Path) -> None:
    """`paper/epalm-350m` on OPT and ViT: the recipe's own keys, augmented views, tiny models, the user's file."""
    data = dwarfs / "data/train.jsonl"
    overrides = [
        f"lm={dwarfs / 'opt'}", f"encoders.image.id={dwarfs / 'vit'}", f"task.train={data}", f"task.validation={data}",
        "task.name=jsonl",
        "method.n_levels=2", "method.first=1", "method.last=2", "train.steps=4", "train.batch_size=2",
    ]  # fmt: skip
    perceptune.train("paper/epalm-350m", tmp_path / "run", overrides=overrides)
    results = perceptune.evaluate(tmp_path / "run")
    assert results["evaluated_samples"] == 12
    assert results["decoding"]["sample"]
    chosen = [row["step"] for row in read_log(tmp_path / "run") if row["event"] == "eval"]
    assert chosen == [2, 3, 4]  # after each epoch of twelve samples, eight a step, and at the end
    assert len(perceptune.load(tmp_path / "run").answer(_samples(dwarfs)[:3])) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": train_section(batch_tokens=20)}, r"sample `.*`: \d+ tokens, more than `train.batch_tokens` = 20"),
        ({"text": {"max_tokens": 10}}, r"sample `.*`: \d+ tokens, more than `text.max_tokens` = 10"),
        ({"eval": {"split": "tset"}}, "unknown split `tset`"),
        ({"eval": {"every": 2, "during_split": "dev"}}, "unknown split `dev`"),
    ],
)
def test_what_can_be_known_before_training_is_said_before(
    dwarfs: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    given = recipe(dwarfs, **changes)
    with pytest.raises(UserError, match=words):
        perceptune.train(given, tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_full_disk_under_the_log_is_one_line(dwarfs: Path, tmp_path: Path) -> None:
    from perceptune.utils.run_log import RunLog

    def full(self: RunLog, text: str, mode: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(recipe(dwarfs)).dump())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "_append", full)
        from perceptune.cli.main import run as cli

        assert cli(["train", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")]) == 2


def test_prompt_and_adapters_have_a_rate_of_their_own(dwarfs: Path, tmp_path: Path) -> None:
    """Connections follow the schedule, the text side keeps its rate: with a rate of almost nothing it does not move."""
    for name in ("epalm", "epalm-ada"):
        given = recipe(
            dwarfs, method={"name": name, "n_levels": 2}, train=train_section(prompt_lr=1e-30, weight_decay=0)
        )
        perceptune.train(given, tmp_path / name)
        trained, fresh = tensors(tmp_path / name), perceptune.build(given).method.state_dict()
        for key, value in trained.items():
            if key.startswith(("prompt", "adapters")):
                assert torch.equal(value, fresh[key]), key
            elif "maps" in key:
                assert not torch.equal(value, fresh[key]), key
        rates = [row["lr"] for row in read_log(tmp_path / name) if row["event"] == "step"]
        assert rates[0]["connector"] > rates[-1]["connector"]
        assert {rate["prompt"] for rate in rates} == {1e-30}
