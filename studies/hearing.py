"""Encoders of audio beside one another: log-mel pictures for DINOv2, Whisper base, EfficientAT mn04.

    python studies/hearing.py search DATA OUT     settings, on a quarter of the training recordings
    python studies/hearing.py test DATA OUT       the chosen ones, three seeds, on the test recordings

DATA holds `esc50_subset`, `fsdd`, `audiocaps_demo` and `models`; OUT the prepared data, the runs and `hearing.json`.
What is there already is not computed again. The commands that do the same are printed.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import perceptune
from command import end_with
from perceptune.evaluation.evaluate import evaluate
from perceptune.evaluation.results import RESULTS
from prepare import Rows, digits, sound_captions, sound_sentences, sounds

SEEDS = (0, 1, 2)
MOBILENET = "models/mn04_as_mAP_432.pt"


class AudioSet(NamedTuple):
    """A data set: what prepares it, the duration of its files, what recordings have in common."""

    prepare: Any
    seconds: int
    group_by: str | None


def trainable(made: Callable[[Path], Rows], data: Path) -> Rows:
    """Yield a set's rows; of a class that has recordings for test alone, the first one is for training."""
    rows = [*made(data)]
    trained = {row["targets"][0] for split, row in rows if split == "train"}
    first: dict[str, str] = {}
    for split, row in rows:
        name, source = row["targets"][0], row["id"].split("-")[1]
        alone = name not in trained and first.setdefault(name, source) == source
        yield "train" if alone else split, row


SETS = {
    "esc50": AudioSet(partial(trainable, sounds), 5, r"\d-(\d+)-"),  # clips of one source recording stay together
    "fsdd": AudioSet(digits, 1, None),
    "captions": AudioSet(partial(trainable, sound_sentences), 5, r"\d-(\d+)-"),
}
# Whisper always encodes 30 s; in bfloat16, because they are many.
ENCODERS = {
    "picture": ["encoders.audio.id=dinov2-small"],
    "whisper": ["encoders.audio.id=whisper-base", "encoders.audio.seconds=null", "encoders.audio.dtype=bfloat16",
                "cache.levels=6"],
    "efficientat": ["encoders.audio.id={data}/" + MOBILENET, "cache.levels=12"],
}  # fmt: skip
# Tried with Whisper on ESC-50, one seed.
TRIED = {
    "200 steps": ["train.steps=200"],
    "noise": ["method.feature_noise=0.5"],
    "late adapter": ["train.steps=200", "method={name: late-adapter}"],
    "late adapter, noise": ["train.steps=200", "method={name: late-adapter, feature_noise: 0.5}"],
}
# What did best there, for all encoders; for ten digits the shorter training is enough.
CHOSEN = {"esc50": TRIED["noise"], "fsdd": TRIED["200 steps"], "captions": TRIED["200 steps"]}
FASTER = ["train.precision=bfloat16", "eval.dtype=bfloat16"]
RANKED = ["eval.rank=choices"]


def main() -> int:
    if len(sys.argv) != 4 or sys.argv[1] not in ("search", "test"):
        print(__doc__)
        return 2
    part, data, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    prepare(data, out)
    file = out / "hearing.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    study = Study(data, out, found)
    for row in study.search() if part == "search" else study.test():
        print(json.dumps({key: value for key, value in row.items() if key != "words"}), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def prepare(data: Path, out: Path) -> None:
    """Write the rows of the sets, classes included, and those of AudioCaps."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    for name, made in (*((name, one.prepare) for name, one in SETS.items()), ("audiocaps", sound_captions)):
        splits: dict[str, list[dict[str, Any]]] = {}
        for split, row in made(data):
            splits.setdefault(split, []).append(row)
        for split, rows in splits.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (out / "data" / f"{name}-{split}.jsonl").write_text(text)


class Study:
    """Runs of all encoders on all sets; `found` holds what is known of them by name."""

    def __init__(self, data: Path, out: Path, found: dict[str, Any]) -> None:
        self.data, self.out, self.found = data, out, found

    def search(self) -> Iterable[dict[str, Any]]:
        """Try settings on a quarter of the training recordings."""
        held = {"media": 0.25, "selecting": 1.0, "group_by": SETS["esc50"].group_by}
        for setting, words in TRIED.items():
            given = [*words, f"train.hold_out={json.dumps(held)}", "eval.split=validation"]
            yield self.judge(f"search {setting}", "esc50", "whisper", given, 0)

    def test(self) -> Iterable[dict[str, Any]]:
        """Train on all training recordings; evaluate on those for test."""
        for seed in SEEDS:
            for name in ("fsdd", "esc50"):
                for encoder in ENCODERS:
                    yield self.judge(f"test {name} {encoder} {seed}", name, encoder, CHOSEN[name], seed)
        for encoder in ENCODERS:
            yield self.judge_captions(f"captions {encoder}", encoder, CHOSEN["captions"])

    def words(self, name: str, encoder: str, given: Sequence[str]) -> list[str]:
        """Return the overrides of the recipe `audio`."""
        files = {split: self.out / "data" / f"{name}-{split}.jsonl" for split in ("train", "test")}
        return [
            f"encoders.audio.seconds={SETS[name].seconds}",
            *(word.format(data=self.data) for word in ENCODERS[encoder]),
            f"task.train={files['train']}", "task.validation=null", f"task.test={files['test']}", *FASTER, *given,
        ]  # fmt: skip

    def run(self, key: str, words: Sequence[str], seed: int) -> tuple[Path, float]:
        """Return the trained run and the processor seconds that its training took, features not included."""
        run = self.out / "runs" / re.sub(r"\W+", "-", key)
        clock = run / "processor-seconds"
        if not clock.is_file():
            before = time.process_time()
            perceptune.train("audio", run, overrides=[*words, f"seed={seed}"], resume=(run / "meta.json").is_file())
            clock.write_text(str(time.process_time() - before))
        return run, float(clock.read_text())

    def judge(self, key: str, name: str, encoder: str, given: Sequence[str], seed: int) -> dict[str, Any]:
        """Return accuracy of generated and of ranked answers, with the media and with those of other samples."""
        if key in self.found:
            return {"run": key, **self.found[key]}
        answers = sorted({json.loads(line)["targets"][0] for line in self._rows(name)})
        words = self.words(name, encoder, [f"task.choices={json.dumps(answers)}", *given])
        print(f"perceptune train audio {' '.join(words)} seed={seed}")
        run, seconds = self.run(key, words, seed)
        row: dict[str, Any] = {"processor seconds": seconds, "words": words}
        for how, extra in (("accuracy", []), ("ranked", RANKED)):
            into = run / how
            if not (into / RESULTS).is_file():
                evaluate(run, control=True, overrides=extra, into=into)
            results = json.loads((into / RESULTS).read_text())
            row |= {how: results["accuracy"], f"{how} shuffled": results["accuracy_shuffled"]}
        self.found[key] = row
        return {"run": key, **row}

    def judge_captions(self, key: str, encoder: str, given: Sequence[str]) -> dict[str, Any]:
        """Train on one sentence for each class of ESC-50; describe AudioCaps' clips, which it has never heard."""
        if key not in self.found:
            caption = ["task.metric=CIDEr", 'text.template="The sound of"', "decode.max_new_tokens=16"]
            run, seconds = self.run(key, self.words("captions", encoder, [*given, *caption]), 0)
            clips = {"name": "jsonl", "train": str(self.out / "data/audiocaps-test.jsonl"), "metric": "CIDEr"}
            results = evaluate(run, control=True, task=clips, into=run / "audiocaps")
            self.found[key] = {
                "processor seconds": seconds, "CIDEr": results["CIDEr"], "CIDEr shuffled": results["CIDEr_shuffled"],
            }  # fmt: skip
        return {"run": key, **self.found[key]}

    def _rows(self, name: str) -> list[str]:
        return (self.out / "data" / f"{name}-train.jsonl").read_text().splitlines()


if __name__ == "__main__":
    end_with(main)
