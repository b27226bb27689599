"""How many files of the package one training step and one answer go through.

    python -m benchmarks.paths [--source CHECKOUT/src] [--training epalm] [--json FILE] [--before FILE]

Counts, with `sys.setprofile` in all threads, the files of `perceptune` of which a function is called by one training
step (features cached, several steps done) and by one `answer` about a new image (model loaded). Counts, too, the step's
calls from the models' layer into the LM's layer: what torch, a context manager or a decorator passes on is a call of
the function that called them, and hooks that transformers runs are none. With `--before`, a file written by `--json`,
exits with 1 if more than 65 % as many files are left, or if a step has more than one such call.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.workloads import TRAININGS, questions, recipe

STEADY = 5  # steps before the one that is counted
SHARE, CALLS = 0.65, 1  # at most
# The modules of each layer in a package that has no folder of its name.
MODULES = {
    "models": "model spliced building sources text checkpoint origin blip_model blip_text blip_loading blip_making",
    "lm": "lm anatomy blocks trial quantized sharding splice split keyvalues textstates attention norms packed head "
    "lighter generation prefill stepping beams choosing ranking likelihood blip",
}
# Files that call on behalf of their caller.
PASS_ON = ("/torch/nn/modules/module.py", "/torch/utils/_contextlib.py", "/contextlib.py", "/functools.py")


class Counting:
    """What is called of a package between `start` and `stop`, in this thread and in those begun after `install`."""

    def __init__(self, package: Path) -> None:
        self._prefix = f"{package}{os.sep}"
        self._tops = {
            layer: {layer} if (package / layer).is_dir() else {f"{name}.py" for name in names.split()}
            for layer, names in MODULES.items()
        }
        self._is_on = False
        self.files: set[str] = set()
        self.calls: Counter[str] = Counter()  # `caller -> callee` from the models' layer into the LM's

    def install(self) -> None:
        """Threads that run already are not seen."""
        threading.setprofile(self._see)
        sys.setprofile(self._see)

    def start(self) -> None:
        self.files, self.calls, self._is_on = set(), Counter(), True

    def stop(self) -> None:
        self._is_on = False

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if not self._is_on or event != "call":
            return
        file = self._file(frame)
        if file is None:
            return
        self.files.add(file)
        if self.layer(file) == "lm":
            caller = frame.f_back
            while caller is not None and caller.f_code.co_filename.endswith(PASS_ON):
                caller = caller.f_back
            calling = None if caller is None else self._file(caller)
            if caller is not None and calling is not None and self.layer(calling) == "models":
                names = [f"{at}:{it.f_code.co_qualname}" for at, it in ((calling, caller), (file, frame))]
                self.calls[" -> ".join(names)] += 1

    def _file(self, frame: FrameType) -> str | None:
        """Relative to the package; None for a file outside it."""
        name = frame.f_code.co_filename
        return name.removeprefix(self._prefix) if name.startswith(self._prefix) else None

    def layer(self, file: str) -> str | None:
        """`models`, `lm`, or None."""
        top = Path(file).parts[0]
        return next((layer for layer, tops in self._tops.items() if top in tops), None)


def count(source: Path, training: str) -> dict[str, Any]:
    """Files and calls of a step and of an answer, of the package in a source folder."""
    sys.path.insert(0, str(source))
    import perceptune
    from benchmarks.small_models import make

    package = Path(str(perceptune.__file__)).parent
    if package.parent != source:
        raise SystemExit(f"{source} holds no package `perceptune`")
    counting = Counting(package)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models, run = make(folder / "models"), folder / "run"
        given = recipe(models, training, folder / "cache", train={"steps": STEADY + 3})
        counting.install()
        step = _of_a_step(counting, lambda: perceptune.train(perceptune.load_recipe(given), run))
        model = perceptune.load(run)
        number, image, prompt = questions(models, 1)[0]
        new = folder / f"new{image.suffix}"
        _mirror(image, new)
        counting.start()
        model.answer([perceptune.Sample(number, {"image": new}, prompt)])
        counting.stop()
    sys.setprofile(None)
    return {"training": training, "step": step, "answer": _found(counting)}


def _of_a_step(counting: Counting, train: Callable[[], Any]) -> dict[str, Any]:
    """From the end of one update of the weights to the end of the next."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    found: list[dict[str, Any]] = []

    def update(*_: Any) -> None:
        counting.stop()
        found.append(_found(counting))  # what was entered since the last update
        if len(found) == STEADY:
            counting.start()

    handle = register_optimizer_step_post_hook(update)
    try:
        train()
    finally:
        handle.remove()
    return found[STEADY]


def _found(counting: Counting) -> dict[str, Any]:
    return {"files": sorted(counting.files), "calls": dict(counting.calls)}


def _mirror(image: Path, new: Path) -> None:
    """Another image, whose features no cache has."""
    from PIL import Image, ImageOps

    with Image.open(image) as opened:
        ImageOps.mirror(opened).save(new)


def report(found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> tuple[str, bool]:
    """The counts in words, and whether they are within the limits."""
    lines, is_within = [], True
    for what in ("step", "answer"):
        files, calls = found[what]["files"], found[what]["calls"]
        compared = ""
        if before is not None:
            most = int(SHARE * len(before[what]["files"]))
            is_within &= len(files) <= most
            compared = f" of {len(before[what]['files'])} before, at most {most}"
        lines.append(f"one {what}: {len(files)} files{compared}")
        lines += [f"  {file}" for file in files]
        lines.append(f"  calls from models into lm: {sum(calls.values())}")
        lines += [f"    {number} x {call}" for call, number in sorted(calls.items())]
    is_within &= before is None or sum(found["step"]["calls"].values()) <= CALLS
    return "\n".join(lines), is_within


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, default=Path(__file__).parents[1] / "src", help="default: this checkout's"
    )
    parser.add_argument("--training", choices=TRAININGS[:3], default="epalm", help="one with images")
    parser.add_argument("--json", type=Path, help="file for what was counted")
    parser.add_argument("--before", type=Path, help="such a file of an earlier commit")
    given = parser.parse_args(arguments)
    before = json.loads(given.before.read_text(encoding="utf-8")) if given.before else None
    if before is not None and before["training"] != given.training:
        parser.error(f"{given.before} counts `{before['training']}`: give --training {before['training']}")
    found = count(given.source.resolve(), given.training)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    text, is_within = report(found, before)
    print(text)
    return int(not is_within)


if __name__ == "__main__":
    sys.exit(main())
