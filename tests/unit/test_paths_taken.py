"""The count of files that a step goes through: whose calls are counted, in which threads, and what is within limits."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import paths

FILES = {
    "__init__.py": "",
    "models/__init__.py": "",
    "models/model.py": (
        "import outside, torch\n"
        "from counted.lm import lm\n"
        "def direct(): return lm.forward()\n"
        "def through_torch(): return lm.Module()()\n"
        "def within(): \n    with lm.using(): pass\n"
        "def without_gradients(): return lm.no_gradients()\n"
        "def hooked():\n"
        "    module = torch.nn.Linear(1, 1)\n"
        "    module.register_forward_pre_hook(lm.hook)\n"
        "    return outside.run(module, torch.ones(1))\n"
    ),
    "lm/__init__.py": "",
    "lm/lm.py": (
        "import contextlib, torch\n"
        "def forward(): return helper()\n"
        "def helper(): return 1\n"
        "class Module(torch.nn.Module):\n    def forward(self): return helper()\n"
        "@contextlib.contextmanager\ndef using():\n    yield\n"
        "@torch.no_grad()\ndef no_gradients(): return helper()\n"
        "def hook(module, given): helper()\n"
    ),
    "other.py": "def work(): return sum(n for n in range(3))\n",
}


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[paths.Counting]:
    """Of a package with the folders `models` and `lm`; what profiled before goes on afterwards."""
    package = tmp_path / "counted"
    for name, text in FILES.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (tmp_path / "outside.py").write_text("def run(module, given): return module(given)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before, in_threads = sys.getprofile(), threading.getprofile()
    made = paths.Counting(package)
    importlib.import_module("counted.models.model")
    importlib.import_module("counted.other")
    made.install()
    yield made
    sys.setprofile(before)
    threading.setprofile(in_threads)  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.split(".")[0] in ("counted", "outside")]:
        del sys.modules[name]


def call(name: str) -> Any:
    module, _, function = name.rpartition(".")
    return getattr(sys.modules[f"counted.{module}"], function)()


def test_files_are_counted_in_all_threads_while_it_is_on(counting: paths.Counting) -> None:
    call("other.work")
    assert counting.files == set()
    counting.start()
    thread = threading.Thread(target=call, args=("other.work",))
    thread.start()
    thread.join()
    counting.stop()
    call("models.model.direct")
    assert counting.files == {"other.py"}


@pytest.mark.parametrize(
    ("function", "callee", "times"),
    [
        ("direct", "forward", 1),
        ("through_torch", "Module.forward", 1),
        ("within", "using", 2),  # it is entered, and left
        ("without_gradients", "no_gradients", 1),
    ],
)
def test_calls_from_models_into_lm(counting: paths.Counting, function: str, callee: str, times: int) -> None:
    counting.start()
    call(f"models.model.{function}")
    counting.stop()
    assert counting.calls == {f"models/model.py:{function} -> lm/lm.py:{callee}": times}
    assert counting.files == {"models/model.py", "lm/lm.py"}


def test_a_hook_that_another_library_runs_is_no_call_from_models(counting: paths.Counting) -> None:
    counting.start()
    call("models.model.hooked")
    counting.stop()
    assert not counting.calls
    assert counting.files == {"models/model.py", "lm/lm.py"}


def test_a_start_forgets_what_was_counted(counting: paths.Counting) -> None:
    for _ in range(2):
        counting.start()
        call("models.model.direct")
    assert sum(counting.calls.values()) == 1


@pytest.mark.parametrize(
    ("folders", "layers"),
    [
        ((), ["models", None, "lm", None]),
        (("models",), [None, "models", "lm", None]),  # while modules are being moved
        (("models", "lm"), [None, "models", None, "lm"]),
    ],
)
def test_a_layer_is_its_folder_or_its_modules(
    folders: tuple[str, ...], layers: list[str | None], tmp_path: Path
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    counting = paths.Counting(tmp_path)
    assert [counting.layer(file) for file in ("spliced.py", "models/slots/model.py", "lm.py", "lm/frozen.py")] == layers
    assert counting.layer("methods/lora.py") is None


@pytest.mark.parametrize(("step", "calls", "is_within"), [(13, 1, True), (14, 1, False), (13, 2, False), (13, 0, True)])
def test_limits_are_a_share_of_the_earlier_count(step: int, calls: int, is_within: bool) -> None:
    def found(files: int, calls: int) -> dict[str, Any]:
        counted = {"files": [str(n) for n in range(files)], "calls": {"a -> b": calls} if calls else {}}
        return {"step": counted, "answer": {"files": ["a"] * 5, "calls": {}}}

    before = found(20, 4)
    before["answer"]["files"] = ["a"] * 10
    text, said = paths.report(found(step, calls), before)
    assert said is is_within
    assert f"one step: {step} files of 20 before, at most 13" in text
    assert paths.report(found(step, calls))[1]  # without an earlier count there is no limit
