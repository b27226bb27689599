"""The losses of five trainings at two commits, to the last bit.

    python -m benchmarks.loss_curves OLD NEW [--keep FOLDER]

OLD and NEW are commits, checkouts, or files of losses kept before. Each training has 20 steps in float32 on one thread,
on small models with random weights. Prints for each `equal`, or the first step that differs and the largest difference.
Exits with 1 if any differs. `--keep` writes the losses, as hexadecimal floats, to `old.json` and `new.json`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.sides import SideError, Sides
from benchmarks.workloads import TRAININGS

Curves = Mapping[str, Sequence[str]]  # training -> `float.hex` of the loss of each step


def difference(old: Sequence[str], new: Sequence[str]) -> str | None:
    """Where two curves part; None if they are the same."""
    if list(old) == list(new):
        return None
    if len(old) != len(new):
        return f"{len(old)} steps in the old one, {len(new)} in the new one"
    pairs = [(float.fromhex(before), float.fromhex(after)) for before, after in zip(old, new, strict=True)]
    first = next(step for step, (before, after) in enumerate(pairs, 1) if before != after)
    largest, step = max((abs(after - before), step) for step, (before, after) in enumerate(pairs, 1))
    relative = largest / max(abs(pairs[step - 1][0]), sys.float_info.min)
    return f"differs from step {first} on, by at most {largest:.3g} (step {step}, {relative:.3g} of the loss)"


def curves_of(given: Mapping[str, str]) -> dict[str, Curves]:
    """The curves of each side: read from its file, or those of trainings at its commit."""
    curves: dict[str, Curves] = {name: json.loads(Path(it).read_text()) for name, it in given.items() if _is_file(it)}
    commits = {name: it for name, it in given.items() if not _is_file(it)}
    if commits:
        with tempfile.TemporaryDirectory() as folder, Sides(commits, Path(folder)).started() as workers:
            for name, worker in workers.items():
                curves[name] = {training: worker.ask(f"losses {training}")["losses"] for training in TRAININGS}
    return curves


def _is_file(given: str) -> bool:
    return Path(given).is_file()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a commit, the folder of a checkout, or a file of losses")
    parser.add_argument("new", help="a commit, the folder of a checkout, or a file of losses")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the losses are written")
    given = parser.parse_args(arguments)
    try:
        curves = curves_of({"old": given.old, "new": given.new})
    except SideError as error:
        print(error, file=sys.stderr)
        return 2
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        for name, side in curves.items():
            (given.keep / f"{name}.json").write_text(json.dumps(side, indent=1), encoding="utf-8")
    found = {name: difference(curves["old"][name], curves["new"][name]) for name in TRAININGS}
    for name, said in found.items():
        print(f"{name:8} {said or 'equal'}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
