"""Training on dwarfs through the public API: exact resuming, kill -9, Ctrl-C, errors that leave a good run behind."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import perceptune
import support
from perceptune.checkpoint import METHOD
from perceptune.errors import UserError
from perceptune.runlog import read_log
from perceptune.training import Trainer
from support import train_section

KILLS = 20


def recipe(dwarfs: Path, **changes: Any) -> dict[str, Any]:
    return support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", **changes)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / METHOD)


def same(a: Path, b: Path) -> bool:
    """The run's method and that of its last checkpoint, bit by bit."""
    files = [[run / METHOD, *run.glob(f"checkpoints/*/{METHOD}")] for run in (a, b)]
    assert [len(found) for found in files] == [2, 2]
    return [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_a_method_learns_and_its_run_explains_itself(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs, train=train_section(steps=150, batch_size=8, save_every=150)), tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run") if row["event"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    results = perceptune.evaluate(tmp_path / "run", control=True)
    assert results["accuracy"] > results["accuracy_shuffled"]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "run.yaml", "meta.json", "method.safetensors", "log.jsonl", "checkpoints", "results.json",
        "predictions.jsonl", "predictions_shuffled.jsonl",
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


@pytest.mark.parametrize("method", ["epalm", "epalm-ada", "epalm-lin"])
def test_resumed_equals_uninterrupted(dwarfs: Path, tmp_path: Path, method: str) -> None:
    given = recipe(dwarfs, method={"name": method, "n_levels": 2}, eval={"every": 3})
    perceptune.train(given, tmp_path / "whole")
    _stop_after(given, tmp_path / "parts", steps=3)
    assert not same(tmp_path / "whole", tmp_path / "parts")
    perceptune.train(None, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    times = ("seconds",)
    rows = [
        [{k: v for k, v in row.items() if k not in times} for row in read_log(tmp_path / n)] for n in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def _stop_after(given: dict[str, Any], run: Path, steps: int) -> None:
    """Raises out of the loop like a crash would: nothing is saved on the way out."""
    original = Trainer._step

    def crash(self: Trainer, bar: Any) -> None:
        if self.state.step == steps:
            raise ConnectionAbortedError
        original(self, bar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", crash)
        with pytest.raises(ConnectionAbortedError):
            perceptune.train(given, run)


def test_kill_9_at_any_moment_loses_nothing(dwarfs: Path, tmp_path: Path) -> None:
    """Twenty kills at random steps of one training; in the end the same bits as without them."""
    given = recipe(dwarfs, train=train_section(steps=4000, save_every=7, schedule="constant"))
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, json, torch, perceptune\n"
        "torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "run = Path(sys.argv[1])\n"
        "started = (run / 'run.yaml').is_file()\n"
        "perceptune.train(None if started else json.loads(sys.argv[2]), run, resume=started)\n"
    )
    chance = random.Random(7)
    run, length = tmp_path / "killed", 0
    for _ in range(KILLS):
        child = subprocess.Popen([sys.executable, str(script), str(run), json.dumps(given)])
        length = _kill_in_training(child, run, chance)
    last = length + 10  # the rate is constant, so both trainings may end here instead of at step 4,000
    _shorten(run, last)
    perceptune.train(None, run, resume=True)
    whole = {**given, "train": train_section(steps=last, save_every=7, schedule="constant")}
    perceptune.train(whole, tmp_path / "whole")
    assert read_log(run)[-1]["event"] == "end"
    assert same(tmp_path / "whole", run)
    assert not list(run.rglob("*.tmp")), "what a killed process left half-written is cleaned up"


def _kill_in_training(child: subprocess.Popen[bytes], run: Path, chance: random.Random) -> int:
    """Kills the child after a random number of further steps; returns the last step it logged."""
    before = _steps(run)
    target, deadline = before + chance.randint(1, 40), time.monotonic() + 60
    while _steps(run) < target:
        assert child.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline, "the training does not go on"
        time.sleep(chance.random() * 0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    return _steps(run)


def _steps(run: Path) -> int:
    return max((row.get("step", 0) for row in read_log(run)), default=0)


def _shorten(run: Path, steps: int) -> None:
    text = (run / "run.yaml").read_text()
    assert "steps: 4000" in text
    (run / "run.yaml").write_text(text.replace("steps: 4000", f"steps: {steps}"))


def test_ctrl_c_saves_and_says_how_to_go_on(dwarfs: Path, tmp_path: Path) -> None:
    given = recipe(dwarfs, train=train_section(steps=100_000, save_every=100_000))
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(given).dump())
    command = [
        sys.executable,
        "-m",
        "perceptune",
        "train",
        str(tmp_path / "r.yaml"),
        "--run",
        str(tmp_path / "run"),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while _steps(tmp_path / "run") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"perceptune train --resume --run {tmp_path / 'run'}" in " ".join(said.split())
    kept = list((tmp_path / "run/checkpoints").iterdir())
    assert len(kept) == 1
    assert int(kept[0].name.removeprefix("step-")) == _steps(tmp_path / "run")


def test_accumulation_equals_one_large_batch(dwarfs: Path, tmp_path: Path) -> None:
    """Answers differ in length: only weighting by tokens makes the two the same."""
    once = {"steps": 3, "lr": 1e-3, "prompt_lr": 1e-3, "warmup_steps": 0}
    perceptune.train(recipe(dwarfs, train={**once, "batch_size": 6}), tmp_path / "large")
    perceptune.train(recipe(dwarfs, train={**once, "batch_size": 2, "accumulate": 3}), tmp_path / "small")
    large, small = tensors(tmp_path / "large"), tensors(tmp_path / "small")
    assert all(torch.allclose(large[name], small[name], atol=1e-5) for name in large)


def test_the_fast_path_equals_the_plain_path(dwarfs: Path) -> None:
    placed = {"name": "epalm", "n_levels": 2, "prompt": "plain", "prompt_at": "first_injected"}
    for method in (placed, {"name": "epalm-lin", "n_levels": 2}):
        model = perceptune.build(recipe(dwarfs, method=method))
        samples = _samples(dwarfs)
        batch = model.collate(samples)
        results = []
        for plain in (False, True):
            model.plain = plain
            loss, count = model.loss(batch)
            (loss / count).backward()
            results.append((loss, [p.grad.clone() for p in model.method.parameters() if p.grad is not None]))
            model.zero_grad()
        (fast, fast_grads), (slow, slow_grads) = results
        assert abs(float((fast - slow).detach())) < 1e-4
        assert len(fast_grads) == len(slow_grads) > 0
        assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(fast_grads, slow_grads, strict=True))


def _samples(dwarfs: Path) -> list[perceptune.Sample]:
    from perceptune.evaluation import make_task

    return list(make_task(perceptune.load_recipe(recipe(dwarfs))).samples("train"))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update(dwarfs: Path, tmp_path: Path, what: str) -> None:
    original = Trainer._backward

    def spoiled(self: Trainer, batches: Any, tokens: int) -> float:
        loss = original(self, batches, tokens)
        if self.state.step == 4 and what == "gradient":  # a backward pass may overflow where the loss does not
            next(self.model.method.parameters()).grad[0, 0] = float("inf")  # type: ignore[index]
        return float("nan") if self.state.step == 4 and what == "loss" else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_backward", spoiled)
        words = {"loss": "loss is nan", "gradient": "gradient's norm is inf"}[what]
        with pytest.raises(UserError, match=words + " at step 5.*last good checkpoint is .*step-00000004"):
            perceptune.train(recipe(dwarfs), tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path / "run").values())
    assert perceptune.load(tmp_path / "run").answer(_samples(dwarfs)[:1])


def test_out_of_memory_says_what_to_lower(dwarfs: Path, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_backward", full)
        with pytest.raises(UserError, match=r"out of memory: lower `train.batch_size` \(now 2\)"):
            perceptune.train(recipe(dwarfs), tmp_path / "run")


def test_a_full_disk_leaves_the_last_checkpoint(dwarfs: Path, tmp_path: Path) -> None:
    original, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target)
        if "step-00000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(UserError, match="the disk is full; nothing already saved was touched"):
            perceptune.train(recipe(dwarfs), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    perceptune.train(None, tmp_path / "run", resume=True)
    perceptune.train(recipe(dwarfs), tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")


def test_an_existing_run_is_never_overwritten(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs), tmp_path / "run")
    before = (tmp_path / "run" / METHOD).read_bytes()
    with pytest.raises(UserError, match="holds a run already: resume it with --resume"):
        perceptune.train(recipe(dwarfs), tmp_path / "run")
    changed = recipe(dwarfs, train=train_section(lr=5e-3))
    with pytest.raises(UserError, match=r"started with train.lr = 0.01, the recipe now says 0.005"):
        perceptune.train(changed, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / METHOD).read_bytes() == before


def test_changed_data_is_not_resumed(dwarfs: Path, tmp_path: Path) -> None:
    data = support.save_data(tmp_path / "data", rows=6)
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data)
    perceptune.train(given, tmp_path / "run")
    data.write_text("\n".join(data.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match="training data has changed"):
        perceptune.train(None, tmp_path / "run", resume=True)


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


def test_the_best_method_is_kept_and_patience_ends_the_run(dwarfs: Path, tmp_path: Path) -> None:
    early = {"every": 2, "patience": 2, "during_samples": 4}
    given = recipe(dwarfs, train=train_section(steps=40), eval=early)
    result = perceptune.train(given, tmp_path / "run")
    points = [(row["step"], row["accuracy"]) for row in read_log(tmp_path / "run") if row["event"] == "eval"]
    best = max(value for _, value in points)
    assert result.best == best
    assert result.steps < 40
    first = next(step for step, value in points if value == best)
    assert result.steps == first + 4


def test_bfloat16_trains_and_the_run_answers_in_float32(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs, train=train_section(precision="bfloat16")), tmp_path / "run")
    assert all(torch.isfinite(t).all() and t.dtype == torch.float32 for t in tensors(tmp_path / "run").values())
    assert perceptune.load(tmp_path / "run").lm.dtype == torch.float32


def test_zero_steps_train_nothing(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs, train=train_section(steps=0)), tmp_path / "run")
    model = perceptune.build(recipe(dwarfs))
    stored = tensors(tmp_path / "run")
    assert all(torch.equal(stored[name], p) for name, p in model.method.named_parameters())


def test_the_papers_small_configuration_runs_on_dwarfs_of_its_architectures(dwarfs: Path, tmp_path: Path) -> None:
    """`paper/epalm-350m` on OPT and ViT: the recipe's own keys, tiny models, the user's file."""
    data = dwarfs / "data/train.jsonl"
    overrides = [
        f"lm={dwarfs / 'opt'}", f"encoders.image.id={dwarfs / 'vit'}", f"task.train={data}", f"task.validation={data}",
        "method.n_levels=2", "method.first=1", "method.last=2", "train.steps=4", "train.batch_size=2",
    ]  # fmt: skip
    perceptune.train("paper/epalm-350m", tmp_path / "run", overrides=overrides)
    results = perceptune.evaluate(tmp_path / "run")
    assert results["evaluated_samples"] == 12
    assert results["decoding"]["beams"] == 3
    assert len(perceptune.load(tmp_path / "run").answer(_samples(dwarfs)[:3])) == 3


def test_resuming_is_exact_with_every_option_on(dwarfs: Path, tmp_path: Path) -> None:
    data = support.save_data(tmp_path / "data", rows=8)
    (tmp_path / "data/train3.png").write_bytes(b"not a picture")
    options = train_section(accumulate=2, clip=0.5, frozen_dropout="official", max_bad_media=1, schedule="linear")
    given = {**support.recipe(dwarfs / "opt", dwarfs / "encoder", data), "train": options}
    perceptune.train(given, tmp_path / "whole")
    _stop_after(given, tmp_path / "parts", steps=3)
    perceptune.train(None, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_not_harmed_by_resuming(dwarfs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    perceptune.train(recipe(dwarfs), run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    perceptune.train(None, run, resume=True)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has a trained method but no checkpoint"):
        perceptune.train(None, run, resume=True)
    assert (run / METHOD).read_bytes() == before[run / METHOD]


def test_a_run_is_not_resumed_on_another_base_model(dwarfs: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(dwarfs / "lm", tmp_path / "lm")
    given = support.recipe(moved, dwarfs / "encoder", dwarfs / "data/train.jsonl")
    perceptune.train(given, tmp_path / "run")
    shutil.rmtree(moved)
    support.save_lm(moved, "qwen2")
    with pytest.raises(UserError, match="trained on another base model"):
        perceptune.train(None, tmp_path / "run", resume=True)


def test_overrides_while_resuming_are_compared_with_the_run(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(recipe(dwarfs), tmp_path / "run")
    with pytest.raises(UserError, match=r"started with train.steps = 6, the recipe now says 50"):
        perceptune.train(None, tmp_path / "run", resume=True, overrides=["train.steps=50"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
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
    from perceptune.runlog import RunLog

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
