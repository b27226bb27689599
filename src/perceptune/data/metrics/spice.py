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
from typing import Any

from pydantic import Field

from perceptune.data.metrics.base import (
    ORDERS,
    Cider,
    MetricOptions,
    Needs,
    References,
    Scored,
    averages,
    find_java,
    java_version,
    numbered,
    ptb_tokens,
    tables,
    zipped,
)
from perceptune.errors import UserError

NEEDS = Needs()

_JAR = "spice-1.0.jar"
_NEWEST_JAVA = 15  # later ones refuse the access to their own classes that the program's serialisation needs
_NEEDED = "SPICE needs its program: name the folder that holds `spice-1.0.jar` and `lib` with Stanford CoreNLP 3.6.0"


class Options(MetricOptions):
    """Where the program and an old Java lie."""

    folder: str = Field("", description="folder with `spice-1.0.jar` and `lib`; default: PERCEPTUNE_SPICE")
    java: str = Field("", description="a Java 8 or 11; default: PERCEPTUNE_SPICE_JAVA, else the one on the PATH")
    memory: str = Field("8G", description="maximum memory of Java")


def score(predictions: Sequence[str], references: References, options: Options = Options()) -> Scored:
    """`SPICE` from 0 to 1 and `SPIDEr`, means over the samples.

    Raises `UserError` where the program or a Java for it is absent, or fails, `ValueError` if there is nothing to score
    or a sample has no references.
    """
    pairs = list(zipped(predictions, references))
    if not pairs:
        raise ValueError("there is nothing to score")
    folder, java = _program(options)
    texts = [(" ".join(ptb_tokens(text)), [" ".join(ptb_tokens(one)) for one in accepted]) for text, accepted in pairs]
    spice = _run(texts, folder, java, options.memory)
    captions = numbered(predictions, references, ptb_tokens)
    cider = Cider(captions)
    for table in tables(captions, ORDERS):
        cider.add(table)
    rows = [
        {"SPICE": one, "SPIDEr": (one + float(other)) / 2} for one, other in zip(spice, cider.scores(), strict=True)
    ]
    definition = {"metric": "SPICE 1.0; SPIDEr = (CIDEr-D + SPICE) / 2", "tokenizer": "ptb", "df": "references"}
    return Scored(averages(rows), rows, definition)


def _program(options: Options) -> tuple[Path, str]:
    """The folder and the Java, found to be of use."""
    name = options.folder or os.environ.get("PERCEPTUNE_SPICE", "")
    if not name:
        raise UserError(f"{_NEEDED} by the option `folder` or the environment variable PERCEPTUNE_SPICE")
    folder = Path(name)
    if not (folder / _JAR).is_file():
        raise UserError(f"{_NEEDED}; {folder} holds no `{_JAR}`")
    if not list((folder / "lib").glob("stanford-corenlp-*.jar")):
        raise UserError(f"{_NEEDED}; {folder / 'lib'} holds no `stanford-corenlp-3.6.0.jar`")
    java = find_java(options.java or os.environ.get("PERCEPTUNE_SPICE_JAVA", "") or "java", "SPICE")
    version = java_version(java)
    if not 8 <= version <= _NEWEST_JAVA:
        raise UserError(
            f"SPICE runs on Java 8 or 11, {java} is Java {version}: name another by the option `java` or the "
            "environment variable PERCEPTUNE_SPICE_JAVA"
        )
    return folder, java


def _run(texts: Sequence[tuple[str, list[str]]], folder: Path, java: str, memory: str) -> list[float]:
    """SPICE of each sample."""
    rows = [{"image_id": index, "test": text, "refs": accepted} for index, (text, accepted) in enumerate(texts)]
    with tempfile.TemporaryDirectory() as name:
        given, found = Path(name) / "given.json", Path(name) / "found.json"
        given.write_text(json.dumps(rows), encoding="utf-8")
        command = [java, f"-Xmx{memory}", "-jar", _JAR, str(given), "-out", str(found), "-silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not found.is_file():
            last = done.stderr.strip().splitlines()[-1:]
            raise UserError(f"SPICE's program failed with {done.returncode}: {''.join(last) or 'it said nothing'}")
        results = json.loads(found.read_text(encoding="utf-8"))
    return _values(results, len(texts))


def _values(results: list[dict[str, Any]], samples: int) -> list[float]:
    by_sample = {int(row["image_id"]): row["scores"]["All"]["f"] for row in results}
    missing = [index for index in range(samples) if not isinstance(by_sample.get(index), int | float)]
    if missing:
        raise UserError(f"SPICE's program gave no value for {len(missing)} samples, sample {missing[0]} first")
    return [float(by_sample[index]) for index in range(samples)]
