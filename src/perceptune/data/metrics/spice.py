"""SPICE, and SPIDEr = (CIDEr + SPICE) / 2: by SPICE's own Java program, which you have to have.

It runs on Java 8 or 11 only, and beside `spice-1.0.jar` its folder needs `lib` with the jars of Stanford CoreNLP 3.6.0,
which no package holds. Name the folder by the option `folder` or the environment variable PERCEPTUNE_SPICE, and the
Java by `java` or PERCEPTUNE_SPICE_JAVA. CIDEr's document frequencies are those of the scored references.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from perceptune.data.metrics import base
from perceptune.errors import UserError

NEEDS = base.Needs()

_JAR = "spice-1.0.jar"
_NEWEST_JAVA = 15  # later ones deny the access to internal classes that the program's serialisation needs
_NEEDED = "SPICE needs its program: name the folder that holds `spice-1.0.jar` and `lib` with Stanford CoreNLP 3.6.0"


class Options(base.MetricOptions):
    """The locations of the program and of an old Java."""

    folder: str = Field("", description="folder with `spice-1.0.jar` and `lib`; default: PERCEPTUNE_SPICE")
    java: str = Field("", description="a Java 8 or 11; default: PERCEPTUNE_SPICE_JAVA, else the one on the PATH")
    memory: str = Field("8G", description="maximum memory of Java")


def score(predictions: Sequence[str], references: base.References, options: Options = Options()) -> base.Scored:
    """Compute `SPICE` from 0 to 1 and `SPIDEr`, means over the samples.

    Raises `UserError` if the program or a Java for it is missing or fails, `ValueError` if there is nothing to score or
    a sample has no references.
    """
    pairs = list(base.zipped(predictions, references))
    if not pairs:
        raise ValueError("there is nothing to score")
    folder, java = _program(options)
    spice = _run(pairs, folder, java, options.memory)
    captions = base.numbered(predictions, references, base.ptb_tokens)
    cider = base.Cider(captions)
    for table in base.tables(captions, base.ORDERS):
        cider.add(table)
    rows = base.rows_of({"SPICE": spice, "SPIDEr": (spice + cider.scores()) / 2})
    definition = {"metric": "SPICE 1.0; SPIDEr = (CIDEr-D + SPICE) / 2", "tokenizer": "ptb", "df": "references"}
    return base.Scored(base.averages(rows), rows, definition)


def _program(options: Options) -> tuple[Path, str]:
    """Return the folder and the Java after checking them. Raises `UserError` if one is missing or unsuitable."""
    name = options.folder or os.environ.get("PERCEPTUNE_SPICE", "")
    if not name:
        raise UserError(f"{_NEEDED} by the option `folder` or the environment variable PERCEPTUNE_SPICE")
    folder = Path(name)
    if not (folder / _JAR).is_file():
        raise UserError(f"{_NEEDED}; {folder} holds no `{_JAR}`")
    if not list((folder / "lib").glob("stanford-corenlp-*.jar")):
        raise UserError(f"{_NEEDED}; {folder / 'lib'} holds no `stanford-corenlp-3.6.0.jar`")
    java = base.find_java(options.java or os.environ.get("PERCEPTUNE_SPICE_JAVA", "") or "java", "SPICE")
    version = base.java_version(java)
    if not 8 <= version <= _NEWEST_JAVA:
        raise UserError(
            f"SPICE runs on Java 8 or 11, {java} is Java {version}: name another by the option `java` or the "
            "environment variable PERCEPTUNE_SPICE_JAVA"
        )
    return folder, java


def _run(pairs: Sequence[tuple[str, Sequence[str]]], folder: Path, java: str, memory: str) -> base.Floats:
    """Compute SPICE of each sample by the program."""
    rows = [{"image_id": index, "test": base.ptb_text(text), "refs": [*map(base.ptb_text, accepted)]}
            for index, (text, accepted) in enumerate(pairs)]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        given, found = Path(name) / "given.json", Path(name) / "found.json"
        given.write_text(json.dumps(rows), encoding="utf-8")
        command = [java, f"-Xmx{memory}", "-jar", _JAR, str(given), "-out", str(found), "-silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not found.is_file():
            last = done.stderr.strip().splitlines()[-1:]
            raise UserError(f"SPICE's program failed with {done.returncode}: {''.join(last) or 'it said nothing'}")
        results = json.loads(found.read_text(encoding="utf-8"))
    by_sample = {int(row["image_id"]): row["scores"]["All"]["f"] for row in results}
    missing = [index for index in range(len(pairs)) if not isinstance(by_sample.get(index), int | float)]
    if missing:
        raise UserError(f"SPICE's program gave no value for {len(missing)} samples, sample {missing[0]} first")
    return np.array([float(by_sample[index]) for index in range(len(pairs))])
