"""Runs the parts of the studies; what is finished is not done again.

    python studies/run.py DATA [--part NAME ...] [--minutes N]     all parts, or those; with --jobs N so many at a time
    python studies/run.py --list                                   what there is and how long it takes
    python studies/run.py DATA --again 3 --seed 0                  three rows picked at random, from scratch

DATA is the folder of the data sets (see `prepare.py`). A stop, `kill -9` included, costs what came after the last
checkpoint of the run that was under way. Each part leaves `studies/results/NAME.json`. A part whose commands, recipes
or code have changed, or whose run folders are not there, is run again; finished runs of another recipe, of other code
or of another machine are refused by name and must be removed first (or kept: `--keep` for the latter two).
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import planning
from collect import tables_of
from command import end_with
from lanes import run_lanes
from origin import circumstances, claim, fingerprint, has_runs
from perceptune.errors import UserError
from perceptune.evaluation.results import file_hash
from perceptune.models.run_folder import METHOD
from perceptune.utils.atomic_io import write_text
from planning import ROOT, RUNS, STUDIES, Part
from prepare import prepare

RESULTS = STUDIES / "results"
STATE = ROOT / RUNS / "state"  # seconds that a part has taken so far, over all its sittings
MODEL = "mn04_as_mAP_432.pt"  # EfficientAT's weights, which recipes name where they are copied to


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    plan = planning.load_plan()
    if options.list:
        print(planning.listing(plan), end="")
        return 0
    if options.data is None:
        raise UserError("name the folder of the data sets, or --list")
    data = Path(options.data).resolve()
    get_data(data)
    if options.again:
        from again import run_again

        return run_again(plan, options.again, options.seed, data)
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    parts = plan.named(options.part)
    left = [part for part in parts if not is_done(part)]
    for part in parts:
        if part not in left:
            print(f"{part.name}: done", flush=True)

    def begin(part: Part) -> None:
        minutes = part.minutes / part.sittings
        if end is not None and time.monotonic() + 60 * minutes > end:
            print(f"{part.name}: not begun, it takes about {minutes:.0f} minutes", flush=True)
        else:
            run_part(part, data, cores() if part.alone else max(1, cores() // options.jobs), keep=options.keep)

    run_lanes(left, options.jobs, begin)
    return 0


def cores() -> int:
    return os.cpu_count() or 1


def get_data(data: Path) -> None:
    """Prepared files, and the one model that comes with the data."""
    models = ROOT / RUNS / "models"
    models.mkdir(parents=True, exist_ok=True)
    prepare(data, ROOT / RUNS / "data")
    source = data / "models" / MODEL
    if not source.is_file():
        raise UserError(f"{source} is not there: the audio parts need it")
    shutil.copy(source, models / MODEL)


def is_done(part: Part) -> bool:
    """Whether its result is there, of these commands, recipes and this code, and the runs that it is from."""
    path = RESULTS / f"{part.name}.json"
    if not path.is_file() or not has_runs(part):
        return False
    return bool(json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == fingerprint(part))


def run_part(part: Part, data: Path, threads: int, *, keep: bool = False) -> None:
    """All its commands with so many threads, then what came out. Raises `UserError` that names the part."""
    for need in part.needs:
        if not (RESULTS / f"{need}.json").is_file():
            raise UserError(f"part `{part.name}`: run `{need}` first")
    print(f"{part.name}: {part.title} (about {part.minutes:.0f} minutes)", flush=True)
    try:
        states, commands = claim(part, keep), []
        for command in part.commands:
            commands.append(planning.words_of(command, data))
            _run(part, commands[-1], threads)
        tables = tables_of(commands)
    except (UserError, OSError, ValueError, KeyError) as error:
        raise UserError(f"part `{part.name}`: {error}") from error
    result = {
        "part": part.name, "title": part.title, "commands": list(part.commands), "fingerprint": fingerprint(part),
        "states": states, **circumstances(), "threads": threads, "seconds": round(_seconds(part), 1), "tables": tables,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{part.name}.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"{part.name}: {_seconds(part) / 60:.1f} minutes, {path.relative_to(ROOT)}", flush=True)


def _run(part: Part, words: Sequence[str], threads: int) -> None:
    """One command in a process of its own, which writes to a log. Its time counts however it ends."""
    if is_over(words):
        return
    log = ROOT / RUNS / "logs" / f"{part.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(words)}\n")
            file.flush()
            before = file.tell()
            code = subprocess.run(
                process_of(words), cwd=ROOT, env=environment(threads), check=False,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
    finally:
        _add_seconds(part, time.monotonic() - start)
    if code.returncode:
        said = log.read_bytes()[before:].decode("utf-8", errors="replace")
        end = " ".join(said.splitlines()[-3:])
        raise UserError(f"`{' '.join(words)}` ended with {code.returncode}: {end} (all of it: {log.relative_to(ROOT)})")


def process_of(words: Sequence[str]) -> list[str]:
    """What is started for a command: the package, or a script of the studies, with this interpreter."""
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    run = planning.option(words, "--run")
    resumed = words[1] == "train" and run is not None and (ROOT / run / "run.yaml").is_file()
    return [sys.executable, "-m", *words, *(["--resume"] if resumed else [])]


def environment(threads: int) -> dict[str, str]:
    """That of a command with so many threads: sums of another number of them differ in their last bits."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def is_over(words: Sequence[str]) -> bool:
    """Whether a command that does its work once has done it: the others find out for themselves."""
    if words[1] in ("build-instructblip", "export-instructblip"):
        return (ROOT / words[2 if words[1].startswith("build") else 3] / "config.json").is_file()
    if words[1] == "eval":
        path = ROOT / str(planning.option(words, "--out")) / "results.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"command": None}
        trained = ROOT / words[2] / METHOD
        return found["command"] == shlex.join(words) and found["models"]["method"]["sha256"] == file_hash(trained)
    return False


def _add_seconds(part: Part, seconds: float) -> None:
    STATE.mkdir(parents=True, exist_ok=True)
    write_text(STATE / part.name, str(_seconds(part) + seconds))


def _seconds(part: Part) -> float:
    path = STATE / part.name
    return float(path.read_text(encoding="utf-8")) if path.is_file() else 0.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", metavar="DATA")
    parser.add_argument("--part", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="the plan, and nothing is run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="parts at a time (default: %(default)s)")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no part that would end later")
    told = "take finished runs of other code or of another machine, too"
    parser.add_argument("--keep", action="store_true", help=told)
    parser.add_argument("--again", type=int, metavar="N", help="run so many rows of the results once more, and compare")
    parser.add_argument("--seed", type=int, default=0, help="of --again: which rows (default: %(default)s)")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    end_with(main)
