"""What the pretend GPU of `fake_cuda.py` has seen: waits, by their place in the sources, faults, and operators."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = "/src/perceptune/"


class DeviceError(RuntimeError):
    """What CUDA would refuse, or compute wrongly."""


class Ledger:
    """What has been seen since it was last cleared."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()  # kind and place
        self.faults: list[str] = []
        self.operators: set[str] = set()

    def clear(self) -> None:
        """Forgets all of it."""
        for kept in (self.waits, self.faults, self.operators):
            kept.clear()  # type: ignore[attr-defined]

    def wait(self, kind: str) -> None:
        self.waits[kind, _place()] += 1

    def fault(self, text: str) -> None:
        """Kept as well as raised: what tries a model out may catch it."""
        self.faults.append(f"{text} at {_place()}")
        raise DeviceError(self.faults[-1])


ledger = Ledger()


@contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """The waits inside, filled in when it ends."""
    before, found = ledger.waits.copy(), Counter[tuple[str, str]]()
    yield found
    found.update(ledger.waits - before)


def _place() -> str:
    """The innermost line of perceptune, and the library's function that it called."""
    frame: Any = sys._getframe(2)
    via = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if SOURCE in name:
            return f"{name.split(SOURCE)[1]}:{frame.f_lineno} {frame.f_code.co_name}{via}"
        if not via and "site-packages" in name and ("/torch/" not in name or "/torch/optim/" in name):
            via = f" via {name.split('site-packages/')[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return f"backward or test{via}"


def without_kernel() -> list[str]:
    """Operators that ran on the device and have no CUDA kernel, by torch's own list."""
    import torchgen
    import yaml

    listed = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    functions = {one["func"].split("(")[0]: one for one in yaml.load(listed.read_text(), yaml.CSafeLoader)}
    return sorted(name for name in ledger.operators if not _has_kernel(name, functions))


def _has_kernel(operator: str, functions: dict[str, Any]) -> bool:
    space, _, name = operator.partition(".")
    one = functions.get(name.removesuffix(".default"))
    if space != "aten" or one is None:
        return False
    while "structured_delegate" in one:
        one = functions[one["structured_delegate"]]
    keys = {key.strip() for keys in one.get("dispatch") or {} for key in keys.split(",")}
    composite = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
    return not one.get("dispatch") or "ufunc_inner_loop" in one or bool(keys & {"CUDA", *composite})
