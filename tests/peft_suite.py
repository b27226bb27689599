"""Run PEFT's own tests with DMA: `make test-peft`.

The tests come from the source distribution of the installed version, fetched from the package index into a temporary
folder; `peft_rows.py` gives them rows for DMA and tiny models in place of the hub's. What they skip is printed with its
reason. It is an error if one fails, or if fewer pass than are known to: tests of a renamed list would have no row.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
FILES = ("custom", "decoder", "encoder_decoder", "feature_extraction")
LEAST = 898  # passed with peft 0.21.2 on a CPU


def fetch(folder: Path) -> None:
    """Put PEFT's tests into `folder`/tests."""
    wanted = f"peft=={metadata.version('peft')}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "peft",
        "--dest",
        str(folder),
    ]
    if subprocess.run([*pip, wanted], check=False).returncode:
        sys.exit(f"{wanted}: its source distribution cannot be fetched from the package index")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    tests = next(folder.glob("peft-*/tests"))
    tests.rename(folder / "tests")
    (folder / "tests" / "__init__.py").touch()  # they import one another relatively


def run(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Run the tests in `folder`; return the numbers of outcomes, and of skipped tests by reason."""
    files = [*(f"tests/test_{name}_models.py" for name in FILES), "tests/test_seq_classifier.py"]
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "peft_rows", "-c", os.devnull, "--rootdir", str(folder)]
    command += ["-W", "ignore", "-n", "2", "--tb", "short", "--junit-xml", str(report), *files]
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PEFT_SUITE_MODELS": str(folder / "models")}
    subprocess.run(command, cwd=folder, check=False, env=os.environ | environment | {"HF_HUB_OFFLINE": "1"})
    if not report.exists():
        sys.exit("PEFT's tests could not be started")
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        found = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[{"skipped": "skipped"}.get(found[0].tag, "failed") if found else "passed"] += 1
        if found and found[0].tag == "skipped":
            reasons[re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", found[0].get("message", ""))] += 1
    return outcomes, reasons


def main() -> None:
    """Print how many passed, failed and were skipped, and why."""
    with tempfile.TemporaryDirectory() as folder:
        fetch(Path(folder))
        outcomes, reasons = run(Path(folder))
    for reason, count in reasons.most_common():
        print(f"{count:5} skipped: {reason}")
    print(", ".join(f"{outcomes[name]} {name}" for name in ("passed", "failed", "skipped")))
    if outcomes["failed"] or outcomes["passed"] < LEAST:
        sys.exit(f"none may fail, and at least {LEAST} have to pass")


if __name__ == "__main__":
    main()
