"""A part of the studies from its commands to the page: killed on the way, gone on with, and computed once more."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import support
import write
from forks import Fork
from perceptune.cli.main import run as cli
from studydata import save_study_data

STUDIES = Path(__file__).parents[2] / "studies"
HERE, RUN = str(STUDIES), subprocess.run
TINY = {
    "parts": [
        {
            "name": "tiny", "title": "A tiny comparison", "question": "Does it run?", "published": ["epalm-table-1"],
            "recipes": ["studies/epalm/tiny.yaml"], "runs": 3, "seconds": 2,
            "commands": ["perceptune compare studies/epalm/tiny.yaml --out {runs}/tiny"],
        },
        {
            "name": "asked", "title": "Decoding", "question": "And this?", "published": [], "needs": ["tiny"],
            "runs": 1, "seconds": 2,
            "commands": ["perceptune eval {best:tiny/epalm} --out {runs}/asked-eval/beams decode.beams=2"],
        },
    ],
    "cannot_tell": [{"title": "Size", "published": ["epalm-figure-4"], "reason": "There is one."}],
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's studies with a plan of two tiny parts."""
    root = tmp_path_factory.mktemp("checkout")
    folder = root / "studies"
    shutil.copytree(STUDIES, folder, ignore=shutil.ignore_patterns("results", "pictures", "__pycache__"))
    (folder / "plan.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "readings.yaml").write_text(yaml.safe_dump({"tiny": {"verdict": "cannot tell", "text": "It is tiny."}}))
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", method="epalm")
    given["train"] = support.train_section(steps=40)
    data = "../../runs/study/data/photo-questions"
    given["task"] = {"name": "jsonl", "train": f"{data}-fit.jsonl", "test": f"{data}-test.jsonl"}
    rates = {"train.lr+train.prompt_lr": [1e-4, 1e-2]}
    own = {"compare.grid": {"method.unfreeze.lm": [1e-5, 1e-3]}}
    methods = {"epalm": {"n_levels": 2}, "full": {"unfreeze": {"lm": 1e-5}, **own}}
    given["compare"] = {"methods": methods, "seeds": [0], "grid": rates}
    (folder / "epalm" / "tiny.yaml").write_text(yaml.safe_dump(given))
    save_study_data(root / "data")
    return root


def started(root: Path, script: str, *more: str) -> Fork:
    """A script of the checkout in a fork, which leads a process group; the fork's words are in `said`.

    What the script starts is a fork, too, with one thread: threads of OpenMP do not outlive a fork.
    """

    def work() -> None:
        os.setsid()
        for name in [n for n, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(HERE)]:
            del sys.modules[name]
        sys.path[:] = [str(root / "studies"), *(path for path in sys.path if path != str(STUDIES))]
        sys.argv[:] = [script, *more]
        os.environ["PERCEPTUNE_CACHE"] = str(root / "cache")
        os.cpu_count = lambda: 1
        subprocess.run = without_a_python
        runpy.run_path(str(root / "studies" / script), run_name="__main__")

    (root / "said").unlink(missing_ok=True)
    return Fork(work, root / "said")


def without_a_python(words: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, in a fork if it is a command of the package."""
    if words[:3] != [sys.executable, "-m", "perceptune"]:
        return RUN(words, **given)
    os.chdir(given["cwd"])
    said = Path(f"said-{os.getpid()}")
    code = Fork(lambda: cli(words[3:]), said).wait()
    if given["stdout"] != subprocess.DEVNULL:
        given["stdout"].write(said.read_text())
    said.unlink()
    assert not (given["check"] and code)
    return subprocess.CompletedProcess(words, code)


def ran(root: Path, script: str, *more: str) -> tuple[int, str]:
    """How it ended, and what it said."""
    return started(root, script, *more).wait(), (root / "said").read_text()


def kill_once_it_trains(root: Path) -> None:
    process, end = started(root, "run.py", str(root / "data")), time.monotonic() + 600
    try:
        while not any("step" in log.read_text() for log in root.glob("runs/study/tiny/runs/*/*/*/log.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (root / "studies/results/tiny.json").exists()


def test_a_part_goes_on_after_a_kill_and_its_numbers_come_out_again(tree: Path) -> None:
    kill_once_it_trains(tree)
    code, said = ran(tree, "run.py", str(tree / "data"))
    assert code == 0, said
    result = json.loads((tree / "studies/results/tiny.json").read_text())
    assert set(result) >= {"commands", "commit", "versions", "machine", "threads", "seconds", "fingerprint", "tables"}
    table = result["tables"][0]
    assert (table["name"], table["metric"], [row["label"] for row in table["rows"]]) == (
        "tiny", "accuracy", ["epalm", "full"],
    )  # fmt: skip
    assert [list(row["setting"]) for row in table["rows"]] == [["train.lr", "train.prompt_lr"], ["method.unfreeze.lm"]]
    assert str(tree) not in json.dumps(result), "no place of the machine"

    # One stored number is not what came out: the rows that are computed once more show which.
    path, kept = tree / "studies/results/tiny.json", json.dumps(result)
    by_seed = table["rows"][0]["by_seed"]
    by_seed["0"] += 0.001
    path.write_text(json.dumps(result))
    code, said = ran(tree, "run.py", str(tree / "data"), "--again", "9")
    assert (code, said.count("the same"), said.count("DIFFERENT")) == (1, 2, 1), said
    path.write_text(json.dumps({**json.loads(kept), "machine": "another"}))
    _, said = ran(tree, "run.py", str(tree / "data"), "--again", "9")
    assert (said.count("the same"), said.count("DIFFERENT")) == (1, 0), "none of another machine's rows"
    path.write_text(kept)

    before = {one: one.stat().st_mtime_ns for one in tree.glob("studies/results/*")}
    _, said = ran(tree, "run.py", str(tree / "data"))
    assert said.splitlines() == ["tiny: done", "asked: done"]
    assert {one: one.stat().st_mtime_ns for one in tree.glob("studies/results/*")} == before

    folder = tree / "studies"
    made = write.pages(folder)
    page, value = made[folder / "README.md"], json.loads(kept)["tables"][0]["rows"][0]["accuracy"]
    assert f"| {100 * value:.1f} |" in page
    prior = json.loads(kept)["tables"][0]["prior"]["value"]
    assert f"**The question alone** has {100 * prior:.1f} (" in page
    assert "**Cannot tell.** It is tiny." in page
    assert "| `beams` |" in page
    assert "eP-ALM, Table 1: Comparison after direct fine-tuning (published, not comparable)" in page
    assert "- Size (eP-ALM, Figure 4): There is one." in page
    assert made[folder / "pictures" / "tiny-0.svg"].startswith("<svg")


def test_a_mistake_names_the_part(tree: Path) -> None:
    recipe = tree / "studies/epalm/tiny.yaml"
    recipe.write_text(recipe.read_text() + "trian: {}\n")
    (tree / "studies/results/tiny.json").unlink(missing_ok=True)
    code, said = ran(tree, "run.py", str(tree / "data"), "--part", "tiny")
    assert code == 2
    assert "error: part `tiny`: " in said
    assert "unknown key `trian`; did you mean `train`" in said
