"""Two processes under `accelerate launch`, on CPUs with gloo: the same course of training as in one, DDP and FSDP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.launch import prepare_multi_gpu_env

import jobs
import perceptune
from forks import Fork
from perceptune.cli.main import main as cli
from perceptune.cli.output import out
from perceptune.utils.run_log import is_main_process, read_log
from runs import features_folder, logged_steps, rows_of, tensors

TESTS = Path(jobs.__file__).parent
COMMON = [
    *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
]
KINDS = {"ddp": ["--multi_gpu"], "fsdp": ["--use_fsdp", "--fsdp_version", "2"]}


def launched(kind: str, *command: str | Path) -> None:
    """Runs two processes to their end as a user starts them, with one thread each."""
    paths = os.pathsep.join([str(Path(perceptune.__file__).parents[1]), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "accelerate.commands.launch", *COMMON, *KINDS[kind], *map(str, command)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, start_new_session=True, **pipes) as child:
        try:
            _, said = child.communicate(timeout=600)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 0, said[:3000]


@contextlib.contextmanager
def forked(kind: str, work: Callable[[], object], folder: Path) -> Iterator[list[Fork]]:
    """The same two processes without a new Python for each and for the launcher; their words are `folder/said-RANK`."""
    told = environment_of(kind)

    def one(rank: int) -> object:
        os.environ.update(told, RANK=str(rank), LOCAL_RANK=str(rank))
        AcceleratorState._reset_state(reset_partial_state=True)  # what other tests have made of it here
        GradientState._reset_state()
        out.quiet = rank != 0  # whether it prints was settled when another test imported it
        return work()

    both = [Fork(partial(one, rank), folder / f"said-{rank}") for rank in range(2)]
    try:
        yield both
    finally:
        for fork in both:
            fork.kill()


def environment_of(kind: str) -> dict[str, str]:
    """What `accelerate launch` and torch's own launcher tell each process."""
    asked = launch_command_parser().parse_args([*COMMON, *KINDS[kind], "a script"])
    asked, *_ = _validate_launch_command(asked)
    given = prepare_multi_gpu_env(asked)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(asked.main_process_port)}
    return {**given, **place, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}


def said(folder: Path) -> list[str]:
    return [(folder / f"said-{rank}").read_text() for rank in range(2)]


def job(kind: str, name: str, folder: Path) -> list[dict[str, Any]]:
    """Runs a job to its end; what each process found."""
    with forked(kind, lambda: jobs.main(name, folder), folder) as both:
        assert [one.wait() for one in both] == [0, 0], said(folder)
    return found_by(name, folder)


def found_by(name: str, folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def place(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dwarfs and the jobs' data."""
    folder = tmp_path_factory.mktemp("jobs") / "place"
    shutil.copytree(dwarfs, folder)
    jobs.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe trained in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, recipe in jobs.recipes(place).items():
        perceptune.train(recipe, folder / name)
    perceptune.evaluate(folder / "odd", control=True, no_media=True)
    captions = {"name": "leaves.captions", "train": str(place / "data/train.jsonl")}
    perceptune.evaluate(folder / "odd", task=captions, control=True, into=folder.parent / "captioned")
    return folder


def events(run: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_log(run) if row["event"] == event]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_and_evaluate_as_one(place: Path, alone: Path, kind: str) -> None:
    folder = shutil.copytree(place, place.with_name(kind))
    if kind == "ddp":  # by the launcher itself, once
        launched(kind, TESTS / "jobs.py", "train_all", folder)
        first, second = found_by("train_all", folder)
    else:
        first, second = job(kind, "train_all", folder)
    runs = folder / "runs"
    assert first["methods"] == second["methods"], "the same bits on both"
    assert all(n > 0 for n in first["sharded"]) if kind == "fsdp" else not any(first["sharded"])
    for name in jobs.recipes(place):
        require_same_course(alone / name, runs / name)
    assert first["results"] == second["results"]
    for file in ("predictions.jsonl", "predictions_shuffled.jsonl", "predictions_no_media.jsonl"):
        require_same_predictions(alone / "odd" / file, runs / "odd" / file)
    require_same_predictions(alone.parent / "captioned/predictions.jsonl", folder / "captioned/predictions.jsonl")
    assert first["captioned"] == second["captioned"]
    own = json.loads((alone.parent / "captioned/results.json").read_text())
    for key in (*own["metrics"], "CIDEr_interval", "gap_CIDEr", "gap_BLEU-4_interval", "evaluated_samples"):
        assert first["captioned"][key] == own[key], key
    assert len(events(runs / "odd", "start")) == len(events(runs / "odd", "end")) == 1, "one process writes"
    assert "train4.png" in (runs / "opt/bad_media.jsonl").read_text()
    require_dealt(first["rows"], second["rows"])


def require_same_predictions(alone: Path, together: Path) -> None:
    """Every sample once, in the same order, with the same answer and scores."""
    one, two = [
        [(row["id"], row["raw"], row["scores"]) for row in map(json.loads, path.read_text().splitlines())]
        for path in (alone, together)
    ]
    assert len(one) == 11
    assert one == two


def require_same_course(alone: Path, together: Path) -> None:
    """Loss, tokens and samples of each step, evaluations, and the method in the end."""
    for one, two in zip(events(alone, "step"), events(together, "step"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), together
        for key in ("step", "tokens", "samples", "lr"):
            assert two[key] == one[key], (together, key)
    assert [row["accuracy"] for row in events(alone, "eval")] == [row["accuracy"] for row in events(together, "eval")]
    before, after = tensors(alone), tensors(together)
    for key in before:
        difference = float((before[key] - after[key]).abs().max())
        # Adam turns a gradient's last digits into a part of a whole step (1e-2) where the gradient is all but zero.
        assert torch.allclose(before[key], after[key], rtol=1e-4, atol=5e-4), (together, key, difference)


def require_dealt(first: list[list[str]], second: list[list[str]]) -> None:
    """Batches of five: three rows here, two there; of eleven samples each once before any comes again."""
    assert [[len(batch) for batch in rows] for rows in (first, second)] == [[3] * 4, [2] * 4]
    dealt = [sample for one, two in zip(first, second, strict=True) for sample in one + two]
    batches = [{*one, *two} for one, two in zip(first, second, strict=True)]
    assert len(batches[0] | batches[1]) == 10
    assert len(set(dealt)) == 11
    assert max(dealt.count(sample) for sample in dealt) == 2


def test_processes_share_the_work_of_the_cache_and_its_results(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place, tmp_path / "together")
    first, second = job("ddp", "cache", folder)
    for prepared, encoded in (first["disk"], second["disk"]):
        assert 0 < prepared == encoded, "nothing is encoded in a step"
    views = first["disk"][0] + second["disk"][0]
    assert views <= first["memory"][0] == second["memory"][0] == first["memory"][1]
    assert "train30.png" in (folder / "disk/bad_media.jsonl").read_text()
    assert [found["said"][0] for found in (first, second)] == ["UserError", "NonMainProcessError"]
    assert "train30.png: not an image" in first["said"][1]
    assert not logged_steps(folder / "strict")
    alone = shutil.copytree(place, tmp_path / "alone")
    perceptune.train(jobs.caching(alone), alone / "disk")
    require_same_course(alone / "disk", folder / "disk")
    require_same_course(alone / "disk", folder / "memory")
    kept = [sorted(rows_of(features_folder(one / "cache")).items()) for one in (alone, folder)]
    assert kept[0] == kept[1], "the same bits"


def test_an_error_of_one_process_ends_both_and_is_said_once(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place, tmp_path / "place")
    first, second = job("ddp", "fail", folder)
    words = "no room on the second machine"
    assert first["said"][:2] == [["UserError", words]] * 2
    assert second["said"][:2] == [["NonMainProcessError", words]] * 2
    assert [found["said"][2][0] for found in (first, second)] == ["UserError", "NonMainProcessError"]
    assert first["said"][2][1].startswith("the loss is nan at step 1")
    (folder / "r.yaml").write_text(perceptune.load_recipe(jobs.recipes(folder)["odd"]).dump())
    with forked("ddp", lambda: command("train", str(folder / "r.yaml"), "train.stepps=3"), folder) as both:
        assert [one.wait() for one in both] == [2, 2]
    words = "".join(said(folder))
    assert words.count("error: ") == words.count("unknown key `train.stepps`") == 1


def test_interrupted_killed_and_resumed(place: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches one process, later one is killed; the run is finished by one process alone."""
    run, given = tmp_path / "run", jobs.recipes(place)["odd"]
    given = {**given, "eval": {}, "train": {**given["train"], "steps": 4000, "save_every": 5, "schedule": "constant"}}
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(given).dump())
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    with forked("ddp", lambda: command("train", str(tmp_path / "r.yaml"), "--run", str(run)), first) as both:
        wait_for(both, run, 3)
        both[1].send(signal.SIGINT)
        assert [one.wait() for one in both] == [130, 130]
    assert "".join(said(first)).count("everything is saved") == 1
    stopped = logged_steps(run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]

    second.mkdir()
    with forked("ddp", lambda: command("train", "--resume", "--run", str(run)), second) as both:
        wait_for(both, run, stopped + 8)
        both[1].kill()
        assert both[0].wait() == 2
    assert said(second)[0].count("error: another process has ended") == 1

    last = logged_steps(run) + 3
    for file in (run / "run.yaml", tmp_path / "r.yaml"):
        file.write_text(file.read_text().replace("steps: 4000", f"steps: {last}"))
    perceptune.train(None, run, resume=True)
    perceptune.train(tmp_path / "r.yaml", tmp_path / "alone")
    require_same_course(tmp_path / "alone", run)


def command(*words: str) -> int:
    """The command line in a fork, whose console was made before the fork knew its rank."""
    out.quiet = not is_main_process()
    return cli(words)


def wait_for(both: list[Fork], run: Path, steps: int) -> None:
    deadline = time.monotonic() + 600
    while logged_steps(run) < steps:
        assert [one.poll() for one in both] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.05)
