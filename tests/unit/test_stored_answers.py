"""What is stored with answers to several media and to questions in a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from perceptune.data.conversations import answers_of
from perceptune.data.metrics.base import Scored
from perceptune.data.tasks.base import Task
from perceptune.evaluation.clusters import cluster_of, cluster_of_row
from perceptune.evaluation.first_look import _examples, report_lines
from perceptune.evaluation.reference_answers import _replay, save_reference_answers
from perceptune.evaluation.results import dataset_info, write_predictions
from perceptune.evaluation.runner import EvalOutput, Prediction
from perceptune.models.run_location import METHOD
from perceptune.tools.report.answers import _shot
from perceptune.tools.report.gather import _row
from perceptune.types import Mark, Message, Sample

ONE = Sample("one", {"image": Path("a/1.png")}, "color?", ("red",))
PAIR = Sample("pair", {"image": (Path("a/1.png"), Path("a/2.png"))}, "which  is redder?", ("first",), {},
              (Mark(0, "image"), Mark(6, "image")))  # fmt: skip
TALK = Sample(
    "talk", {"image": (Path("a/1.png"), Path("a/2.png")), "audio": Path("a/s.wav")}, "and this?", ("blue",), {},
    (Mark(4, "image"),), (
        Message("system", "Be brief."), Message("user", "color?", (Mark(0, "image"), Mark(0, "audio"))),
        Message("assistant", "red", is_target=True)),
)  # fmt: skip


def stored(folder: Path, *samples: Sample) -> list[dict[str, Any]]:
    task = cast(Task, SimpleNamespace(clean=str))
    scores = [{"accuracy": 1.0} for _ in samples]
    judged = EvalOutput(Scored({"accuracy": 1.0}, scores, {}), [Prediction("red") for _ in samples])
    write_predictions(folder / "predictions.jsonl", samples, task, judged)
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_predictions_name_all_media_and_show_the_turns(tmp_path: Path) -> None:
    one, pair, first, last = stored(tmp_path, ONE, PAIR, *answers_of(TALK))
    assert list(one) == ["id", "media", "prompt", "answer", "raw", "targets", "scores", "meta"]
    assert (one["media"], one["prompt"]) == ({"image": "a/1.png"}, "color?")
    assert (pair["media"], pair["prompt"]) == ({"image": ["a/1.png", "a/2.png"]}, "<image>which <image> is redder?")
    assert (first["id"], first["media"]) == ("talk/1", {"image": "a/1.png", "audio": "a/s.wav"})
    assert first["history"] == [{"role": "system", "content": "Be brief."}]
    assert last["prompt"] == "and <image>this?"
    assert [turn["content"] for turn in last["history"]] == ["Be brief.", "<image><audio>color?", "red"]
    [inside] = stored(tmp_path, Sample("bytes", {"image": (b"1", b"2")}, "which?", ("first",)))
    assert inside["media"] == {}, "they lie in no file of their own"


def test_answers_of_a_conversation_are_resampled_together(tmp_path: Path) -> None:
    samples = [ONE, PAIR, *answers_of(TALK)]
    first, last = answers_of(TALK)
    assert cluster_of(first) == cluster_of(last) == (("audio", Path("a/s.wav")), ("image", Path("a/1.png")))
    assert cluster_of(PAIR) == (("image", (Path("a/1.png"), Path("a/2.png"))),)
    rows = stored(tmp_path, *samples)
    for given in (rows, [_row(json.dumps(row).encode()) or {} for row in rows]):
        groups = [cluster_of_row(row) for row in given]
        assert groups[2] == groups[3]
        assert len(set(groups)) == len({cluster_of(sample) for sample in samples}) == 3
    assert cluster_of(Sample("text", {}, "what?")) == cluster_of_row({"id": "text", "media": {}}) == ("text",)


def test_a_report_shows_each_medium_and_the_turns(tmp_path: Path) -> None:
    row = _row(json.dumps(stored(tmp_path, answers_of(TALK)[1])[0]).encode())
    assert row is not None
    shot = _shot([("", row)], "accuracy", True, media=True)
    assert [f"a/{name}" in shot.lacking for name in ("1.png", "2.png", "s.wav")] == [True] * 3, "none of them exists"
    assert shot.history == ["system: Be brief.", "user: <image><audio>color?", "assistant: red"]
    [example] = _examples([row], "accuracy")["right"]
    found = {"metric": "accuracy", "value": 1.0, "interval": [0, 1], "samples": 1, "media": 1, "split": "test",
             "shuffled": None, "no_media": None, "always": None, "right": [example], "next": []}  # fmt: skip
    assert "  1.png, 2.png: Be brief. / <image><audio>color? / red / and <image>this? -> red (target: blue)" in (
        report_lines(found))  # fmt: skip


def test_the_hash_of_a_data_set_follows_media_places_and_turns() -> None:
    def digest(sample: Sample) -> str:
        return str(dataset_info(None, "test", [sample])["sha256"])

    changed = [
        Sample("pair", {"image": PAIR.list_media("image")[::-1]}, PAIR.prompt, PAIR.targets, {}, PAIR.marks),
        Sample("pair", PAIR.media, PAIR.prompt, PAIR.targets),
        Sample("pair", PAIR.media, PAIR.prompt, PAIR.targets, {}, PAIR.marks, TALK.history[:1]),
    ]
    assert len({digest(PAIR), *map(digest, changed)}) == 4


def test_reference_answers_are_asked_again_with_the_same_turns(tmp_path: Path) -> None:
    (tmp_path / METHOD).write_bytes(b"")
    media = {"image": (b"1", b"2"), "audio": b"3"}
    talk = Sample("talk", media, TALK.prompt, ("blue",), {}, TALK.marks, TALK.history)
    asked: list[Sample] = []

    def answer(samples: list[Sample], **_: Any) -> list[str]:
        asked.extend(samples)
        return ["red"]

    model = cast(Any, SimpleNamespace(answer=answer, dtype=torch.float32, device=torch.device("cpu")))
    proof = save_reference_answers(tmp_path, model, [Sample("a", {"image": b"1"}, "?"), talk])
    one, kept = json.loads(json.dumps(proof))["samples"]
    assert list(one) == ["id", "prompt", "media", "answer"]
    asked.clear()
    assert _replay(model, kept)["state"] == "same"
    [again] = asked
    assert (again.media, again.prompt, again.marks) == (media, TALK.prompt, TALK.marks)
    assert [(turn.role, turn.text, turn.marks) for turn in again.history] == [
        (turn.role, turn.text, turn.marks) for turn in TALK.history
    ]
    kept["media"]["image"][1]["sha256"] = "0"
    assert _replay(model, kept)["state"] == "medium changed: image"
