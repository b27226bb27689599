"""Scoring of files: every mistake is named by file, place and id, and no file fills the memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from answerfiles import LINES, Write, given, held, writer
from perceptune.data import json_stream
from perceptune.errors import UserError
from perceptune.evaluation.score_files import files
from perceptune.evaluation.score_files.files import entries
from perceptune.evaluation.score_files.run import FileScores, score_files


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


def vqa(predictions: str, references: str, **more: Any) -> FileScores:
    return score_files(predictions, references, ["vqa"], **more)


BAD_PREDICTIONS = {
    "no id": ('{"prediction": "a"}\n', "p, line 1: no key `id`"),
    "misspelt": ('{"id": 1, "predicton": "a"}', "p, line 1: no key `prediction` or .* did you mean `prediction`"),
    "twice": (LINES + '{"id": 1, "prediction": "b"}', "p, line 4: the id `1` was given before: .*p, line 1"),
    "unknown": (LINES + '{"id": "9", "prediction": "b"}\n{"id": "8", "prediction": "b"}',
                r"p, line 4: .*r.jsonl has no id `9` \(nor 1 further ids"),
    "missing": ('{"id": 2, "prediction": "a"}', "2 of the 3 samples in .* have no prediction: `1`, `3`; `--subset`"),
    "a number": ('{"id": 1, "prediction": 7}', "p, line 1: `prediction` is a number, not a string"),
    "NaN": ('{"id": 1, "prediction": NaN}', "p, line 1: invalid JSON: NaN is no number"),
    "null": ('{"id": 1, "prediction": null}', "p, line 1: `prediction` is null, not a string"),
    "id NaN": ('{"id": NaN, "prediction": "a"}', "p, line 1: invalid JSON: NaN is no number"),
    "id 1.0": ('{"id": 1.0, "prediction": "a"}', "p, line 1: `id` is the number 1.0"),
    "id empty": ('{"id": " ", "prediction": "a"}', "p, line 1: `id` is empty"),
    "surrogate": ('{"id": 1, "prediction": "\\ud800"}', "p, line 1: `prediction` holds an unpaired surrogate"),
    "no JSON": ("\njust text\n", "p, line 2: neither JSON nor a table"),
    "torn line": (LINES + '{"id": 4, "pre', "p, line 4: invalid JSON"),
    "torn first line": ('{"id": 4, "pre', "p, line 1: invalid JSON"),
    "Latin-1": ('{"id": 1, "prediction": "é"}'.encode("latin-1"), "p, line 1: not UTF-8"),
    "UTF-16": (LINES.encode("utf-16")[:-1], "cannot read .*p as UTF-16"),
    "Latin-1 in a list": ('[{"id": 1, "prediction": "é"}]'.encode("latin-1"), "p, line 1: not UTF-8"),
    "nothing": ("", "p holds no rows"),
    "blank": ("\n\n", "p holds no rows"),
    "empty list": ("[]", "p holds no rows"),
    "list of lists": ('[[1, "a"]]', "p, index 0: a list, not an object"),
    "no id in a list": ('[{"id": 1, "prediction": "a"}, {"prediction": "a"}]', "p, index 1: no key `id`"),
    "torn list": ('[{"id": 1, "prediction": "a"}, {"id"', "p, index 1: invalid JSON"),
    "list without end": ('[{"id": 1, "prediction": "a"}', "p, line 1: invalid JSON: expected `,` or `]`, got the end"),
    "broken item": ('[{"id": 1, "prediction": oops}' + ", 1" * 100 + "]", "p, index 0: invalid JSON"),
    "two lists": ('[{"id": 1, "prediction": "a"}]\n[]', r"p, line 2: invalid JSON: `\[` follows its end"),
    "torn gzip": (gzip.compress(LINES.encode())[:-9], "cannot read .*p: "),
    "deep": ("[" * 200_000, "p, index 0: invalid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD_PREDICTIONS)
def test_mistakes_in_predictions_are_named(mistake: str, write: Write) -> None:
    content, message = BAD_PREDICTIONS[mistake]
    with pytest.raises(UserError, match=message):
        vqa(write("p", content), held(write))


BAD_REFERENCES = {
    "none": ({"id": 1}, "line 1: no key `references` or"),
    "empty": ({"id": 1, "references": []}, "line 1: `references` is empty"),
    "null": ({"id": 1, "references": None}, "line 1: `references` is null"),
    "a string": ({"id": 1, "references": "a dog"}, "line 1: `references` is a string, not a list of strings"),
    "no text": ({"id": 1, "references": ["", " "]}, "line 1: no reference holds any text"),
    "a number in it": ({"id": 1, "references": ["a", 2]}, r"line 1: `references\[1\]` is a number, not a string"),
}


@pytest.mark.parametrize("mistake", BAD_REFERENCES)
def test_mistakes_in_references_are_named(mistake: str, write: Write) -> None:
    row, message = BAD_REFERENCES[mistake]
    with pytest.raises(UserError, match=message):
        score_files(given(write, **{"1": "a"}), write("r.jsonl", [row]), ["exact"])


def test_vqa_accuracy_of_a_single_answer_is_refused(write: Write) -> None:
    with pytest.raises(UserError, match=r"r\.jsonl, line 1: a single answer; .* metric `exact`"):
        vqa(given(write, **{"1": "a"}), write("r.jsonl", [{"id": 1, "answers": ["a"]}]))
    few = vqa(given(write, **{"1": "a"}), write("r.jsonl", [{"id": 1, "answers": ["a", "a"]}]))
    assert "fewer than 4 answers" in few.notes[0]


def test_a_document_without_annotations_and_choices_out_of_range(write: Write) -> None:
    with pytest.raises(UserError, match=r"r\.json holds no rows: its list `annotations`"):
        vqa(given(write), write("r.json", {"info": {}, "images": [{"id": 1}]}))
    row = {"question_id": "1", "choices": ["a"], "correct_choice_idx": 1}
    with pytest.raises(UserError, match="index 0: `correct_choice_idx` is 1, not the number of one of 1 choices"):
        score_files(given(write, **{"1": "a"}), write("r.json", [row]), ["choice"])


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        (["cidr"], [], "unknown metric `cidr`"),
        ([], [], "at least one metric"),
        (["vqa"], ["dialekt=always"], "vqa has no `dialekt`; did you mean `dialect`"),
        (["vqa"], ["dialect=old"], "metric `vqa`: `dialect`: .*official.*old"),
        (["vqa"], ["exact.lowercase=true"], "metric `exact` is not scored"),
        (["vqa"], ["lowercase"], "not of the form KEY=VALUE"),
    ],
)
def test_mistakes_in_options_are_named(metrics: list[str], options: list[str], message: str, write: Write) -> None:
    with pytest.raises(UserError, match=message):
        score_files(given(write), held(write), metrics, options=options)


def test_a_subset_is_scored_only_when_asked_for(write: Write) -> None:
    scores = vqa(given(write, **{"2": "red dog"}), held(write), subset=True)
    assert (scores.result["n"], scores.result["missing"]) == (1, 2)
    assert "2 samples without a prediction are left out" in scores.notes[0]


@pytest.mark.parametrize(
    "start", ['{"id": 1, "prediction": "', '[{"id": 1, "prediction": "', '{"annotations": [{"a": "', " "]
)
def test_a_row_beyond_the_limit_is_refused_without_being_read_whole(
    start: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 100 kB and then what would fail if it were read."""
    for module in (json_stream, files):
        monkeypatch.setattr(module, "MAX_LINE", 10_000)
    monkeypatch.setattr(json_stream, "_PIECE", 1_000)
    path = write("p", start.encode() + b"x" * 50_000 + b"\xff" * 50_000)
    with pytest.raises(UserError, match="longer than 0 MiB"):
        list(entries(path))


def test_small_pieces_give_the_same_rows(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is cut in two: numbers, escapes, characters of several bytes."""
    rows = [{"id": n, "prediction": 'é"\\\u2028 ' * n, "x": [n * 1.5, None, True]} for n in range(20)]
    path = write("p.json", json.dumps(rows, ensure_ascii=False, indent=1).encode())
    content = {"images": [123, 456], "info": {"a": [1]}, "annotations": rows}
    document = write("d.json", json.dumps(content, indent=1).encode())
    whole = [entry.values for entry in entries(path)]
    for piece in (1, 2, 3, 7):
        monkeypatch.setattr(json_stream, "_PIECE", piece)
        assert [entry.values for entry in entries(path)] == whole == rows
        assert [entry.values for entry in entries(document)] == rows


def test_memory_stays_bounded_whatever_the_length_of_a_line(tmp_path: Path) -> None:
    """4 GB of one line, as holes on the disk."""
    path = tmp_path / "long"
    for start in (b'{"id": 1, "prediction": "', b'[{"id": 1, "prediction": "'):
        with path.open("wb") as file:
            file.write(start)
            file.truncate(4 * 2**30)
        code = (
            "import resource\nfrom perceptune.evaluation.score_files.files import entries\n"
            "from perceptune.errors import UserError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            f"try: list(entries({str(path)!r}))\n"
            "except UserError as error: print(error)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert "long, " in said
        assert int(said.splitlines()[-1]) < 300_000, "kB"
