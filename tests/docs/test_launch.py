"""The launch files: their syntax, and that the commands, options and recipe keys in them exist."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import container
from perceptune.cli.commands.train import training_recipe
from perceptune.cli.main import parser
from perceptune.cli.parsing import place_overrides
from perceptune.config.recipe import load_recipe

LAUNCH = Path(__file__).parents[2] / "launch"
DATA = re.compile(r"^\$DATA$|\.jsonl$")


def scripts() -> dict[str, str]:
    """The shell code of each file."""
    job = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    return {"slurm": (LAUNCH / "slurm.sbatch").read_text(), "setup": job["setup"], "run": job["run"]}


@pytest.mark.parametrize("name", scripts())
def test_shell_code_parses(name: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=scripts()[name], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_file_names_what_it_needs() -> None:
    job = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert {"name", "resources", "setup", "run", "file_mounts", "envs"} <= set(job)
    used = set(re.findall(r"\$\{(\w+)\}", str(job["file_mounts"])))
    assert used <= set(job["envs"])


@pytest.mark.parametrize("name", ["slurm", "run"])
def test_commands_and_recipe_keys_exist(name: str, dwarfs: Path) -> None:
    lines = re.findall(r"^ *launch (.+)$", scripts()[name], flags=re.M)
    assert {line.split()[0] for line in lines} == {"train", "eval"}
    assert any("--resume" in line for line in lines)
    for line in lines:
        words = [str(dwarfs / "data" / "train.jsonl") if DATA.search(word) else word for word in shlex.split(line)]
        options, rest = parser().parse_known_args(words)
        assert place_overrides(options, rest) == []
        if line.startswith("train") and not options.resume:
            recipe = load_recipe(*training_recipe(options))
            assert recipe.task is not None
            assert (recipe.task.name, recipe.train.batch_tokens) == ("jsonl", 65536)


@pytest.mark.parametrize("name", ["slurm", "run"])
def test_the_launcher_knows_its_options(name: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    text = scripts()[name].replace("\\\n", " ")
    found = re.search(r"accelerate launch (.*?) -m perceptune", text, flags=re.S)
    assert found
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--\w+", found.group(1))) | {"--use_fsdp", "--fsdp_version", "--multi_gpu"}
    assert len(named) >= 9
    assert named <= known


def test_the_batch_script_starts_what_it_says(tmp_path: Path) -> None:
    """Run with stand-ins for `srun`, `scontrol` and `accelerate`: first a new run, then the same one resumed."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, code in {
        "srun": 'exec "$@"',
        "scontrol": "printf 'node1\\nnode2\\n'",
        "accelerate": 'printf "%s " "$@" >> "$LOG"; echo >> "$LOG"',
    }.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{code}\n")
        (bin_ / name).chmod(0o755)
    bash, log, run = shutil.which("bash"), tmp_path / "log", tmp_path / "my run"
    assert bash
    environment = {
        "PATH": f"{bin_}:/usr/bin:/bin", "LOG": str(log), "RUN": str(run), "DATA": "/d/t.jsonl", "SLURM_NNODES": "2",
        "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    for _ in range(2):
        subprocess.run([bash, str(LAUNCH / "slurm.sbatch")], env=environment, check=True)
        run.mkdir(exist_ok=True)
        (run / "run.yaml").write_text("")
    new, _, resumed, evaluated = log.read_text().splitlines()
    assert "--multi_gpu --num_machines 2 --machine_rank 1 --num_processes 16 --main_process_ip node1" in new
    assert "-m perceptune train small --data /d/t.jsonl" in new
    assert f"-m perceptune train --resume --run {run}" in resumed
    assert f"-m perceptune eval {run}" in evaluated


def test_the_container_has_what_the_server_needs() -> None:
    steps = [*container.instructions((LAUNCH / "Dockerfile").read_text())]
    names = [name for name, _ in steps]
    assert names[0] == "FROM"
    assert ":" in steps[0][1], "a version of the image"
    known = "FROM ARG WORKDIR COPY RUN ENV USER VOLUME EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD"
    assert set(names) <= set(known.split())
    told = dict(steps)
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN"), "root installs only"
    assert told["USER"] not in ("root", "0")
    for name, rest in steps:
        for source in shlex.split(rest)[:-1] if name == "COPY" else ():
            assert (LAUNCH.parent / source).exists(), source
    words = [*json.loads(told["ENTRYPOINT"]), *json.loads(told["CMD"])]
    assert words[0] == "perceptune"
    assert parser().parse_args(words[1:]).runs == ["mine=/run"]
    assert "STOPSIGNAL SIGTERM" in (LAUNCH / "Dockerfile").read_text(), "at which answers in work end"


def test_the_service_starts_a_server() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(LAUNCH / "perceptune.service")
    words = shlex.split(unit["Service"]["ExecStart"])
    options = parser().parse_args(words[1:])
    assert options.runs == ["mine=/srv/perceptune/run"]
    assert float(unit["Service"]["TimeoutStopSec"]) > options.drain_seconds, "answers in work end before it is killed"
    assert unit["Service"]["LoadCredential"].startswith("key:"), "no key on the command line"
