"""Scoring of files: every layout gives the same numbers."""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from answerfiles import ANSWERS, LINES, TEXTS, Write, given, held, writer
from perceptune.cli.main import run as cli
from perceptune.config.registry import leaves
from perceptune.evaluation.score_files import run as score_run
from perceptune.evaluation.score_files.run import FileScores, score_files
from perceptune.tools.list_components import entries


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


def vqa(predictions: str, references: str, **more: Any) -> FileScores:
    return score_files(predictions, references, ["vqa"], **more)


LAYOUTS = {
    "lines": ("p.jsonl", LINES),
    "byte order mark": ("p.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
    "CRLF": ("p.jsonl", LINES.replace("\n", "\r\n").encode()),
    "blank lines": ("p.jsonl", "\n  \n" + LINES.replace("\n", "\n\n")),
    "no last newline": ("p.jsonl", LINES.rstrip()),
    "gzip": ("p.jsonl.gz", gzip.compress(LINES.encode())),
    "gzip by another name": ("p.txt", gzip.compress(b"\xef\xbb\xbf" + LINES.encode())),
    "VQA results": ("p.json", [{"question_id": int(id), "answer": text} for id, text in TEXTS.items()]),
    "VQA results, pretty": ("p.json", json.dumps([{"question_id": 1, "answer": "yes"},
                                                  {"question_id": 2, "answer": "a red dog"},
                                                  {"question_id": 3, "answer": ""}], indent=2).encode()),
    "a run's predictions": ("p.jsonl", [{"id": id, "media": {"image": "i"}, "prompt": "?", "answer": text,
                                         "raw": "other", "targets": ["x"], "scores": {}, "meta": {}}
                                        for id, text in TEXTS.items()]),
    "GQA": ("p.json", [{"questionId": id, "prediction": text} for id, text in TEXTS.items()]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_predictions_gives_the_same_numbers(layout: str, write: Write) -> None:
    scores = vqa(write(*LAYOUTS[layout]), held(write))
    assert scores.result["accuracy"] == pytest.approx((1 + 0.9 + 0) / 3)
    assert scores.result["n"] == 3
    assert scores.result["empty"] == 1
    assert scores.notes == ["1 of 3 predictions are empty; they are scored as empty answers"]


def annotations(**more: Any) -> dict[str, Any]:
    """As VQA v2's file; `question_id` is the id, `image_id` what questions share."""
    return {
        "info": {"version": "2.0"}, "license": {}, "data_subtype": "val2014", **more,
        "annotations": [
            {"question_id": int(id), "image_id": 7, "answer_type": "yes/no" if id != "2" else "other",
             "question_type": "is the", "multiple_choice_answer": answers[0],
             "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(answers, 1)]}
            for id, answers in ANSWERS.items()
        ],
    }  # fmt: skip


@pytest.mark.parametrize("indent", [None, 1])
def test_vqa_annotations_give_types_their_own_accuracies(indent: int | None, write: Write) -> None:
    scores = vqa(given(write), write("r.json", json.dumps(annotations(), indent=indent).encode()))
    assert scores.result["accuracy_yes_no"] == 0.5
    assert scores.result["accuracy_other"] == pytest.approx(0.9)
    assert scores.result["accuracy_question_is_the"] == scores.result["accuracy"]
    assert "accuracy_question_is_the_interval" not in scores.result
    low, high = scores.result["accuracy_interval"]
    assert low == high == pytest.approx(scores.result["accuracy"]), "all questions are on one image: one draw"
    assert scores.result["definition"]["dialect"] == "official"
    exact = score_files(given(write), write("r.json", annotations()), ["exact"])
    assert exact.result["accuracy"] == pytest.approx(1 / 3), "the most frequent answer"


def test_coco_captions_are_gathered_by_image(write: Write) -> None:
    captions = {1: ["A brown dog runs.", "The dog is running on grass."], 2: ["Two men play guitar.", "A band."]}
    document = {
        "info": {}, "images": [{"id": 1}, {"id": 2}], "licenses": [],
        "annotations": [{"id": 100 * i + n, "image_id": i, "caption": text}
                        for n in range(2) for i, texts in captions.items() for text in [texts[n]]],
    }  # fmt: skip
    found = write(
        "p.json", [{"image_id": 2, "caption": "a band plays", "id": 1}, {"image_id": 1, "caption": "a dog runs"}]
    )
    scores = score_files(found, write("r.json", document), ["caption"])
    lines = write("r.jsonl", [{"id": i, "references": texts} for i, texts in captions.items()])
    assert scores.result == score_files(found, lines, ["caption"]).result
    assert scores.keys == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert all(len(scores.result[f"{key}_interval"]) == 2 for key in scores.keys)
    assert [row["id"] for row in scores.rows] == ["1", "2"], "in the references' order"
    lines = write("r.jsonl", [{"id": i, "references": texts, "image": "one"} for i, texts in captions.items()])
    together = score_files(found, lines, ["caption"]).result
    for key in scores.keys:
        assert together[f"{key}_interval"] == pytest.approx([together[key]] * 2), "one image is one draw"


def test_gqa_counts_balanced_questions_and_takes_the_others_for_consistency(write: Write) -> None:
    question = {"types": {"structural": "query"}, "isBalanced": True, "imageId": "9"}
    references = write("r.json", {
        "q": {**question, "answer": "red", "entailed": ["q", "e", "f"]},
        "w": {**question, "answer": "dog", "entailed": [], "types": {"structural": "verify"}},
        "e": {**question, "answer": "yes", "entailed": [], "isBalanced": False},
        "f": {**question, "answer": "no", "entailed": [], "isBalanced": False},
    })  # fmt: skip
    scores = score_files(given(write, q="red", w="cat", e="yes", f="yes"), references, ["gqa"])
    assert scores.result["n"] == 2
    values = {key: scores.result[key] for key in scores.keys}
    assert values == {"accuracy": 0.5, "accuracy_open": 1.0, "accuracy_binary": 0.0, "consistency": 0.5}
    alone = score_files(given(write, q="red", w="cat"), references, ["gqa"])
    assert "consistency" not in alone.result
    assert "2 questions" in alone.result["definition"]["consistency"]


def test_a_okvqa_files(write: Write) -> None:
    row = {"image_id": 1, "choices": ["red", "blue"], "correct_choice_idx": 1, "direct_answers": ["blue"] * 2 + ["b"]}
    references = write("r.json", [
        {**row, "question_id": "x", "difficult_direct_answer": False},
        {**row, "question_id": "y", "difficult_direct_answer": True},
    ])  # fmt: skip
    answers = {"multiple_choice": "blue", "direct_answer": "blue"}
    predictions = write("p.json", {"x": answers, "y": {**answers, "multiple_choice": "A"}})
    assert score_files(predictions, references, ["choice"]).result["accuracy"] == 0.5
    direct = score_files(predictions, references, ["a-okvqa"])
    assert direct.result["accuracy"] == pytest.approx(2 / 3)
    assert direct.result["n"] == 1, "difficult ones are left out"


def test_groups_carry_the_name_of_their_value(write: Write) -> None:
    references = write("r.jsonl", [{"id": "1", "references": ["yes"], "answer_type": "yes/no"}])
    assert score_files(given(write, **{"1": "yes"}), references, ["f1"]).keys == ["f1", "f1_yes_no"]


def test_several_metrics_keep_their_keys_apart(write: Write) -> None:
    references = write("r.jsonl", [{"id": "1", "answers": ["yes"] * 10, "references": ["yes"]}])
    scores = score_files(
        given(write, **{"1": "Yes"}), references, ["vqa", "exact", "f1"], options=["exact.lowercase=true"]
    )
    assert {key: scores.result[key] for key in scores.keys} == {"vqa_accuracy": 0.0, "exact_accuracy": 1.0, "f1": 1.0}
    assert scores.result["definition"]["exact"]["lowercase"] is True
    assert scores.rows == [{"id": "1", "prediction": "Yes", "vqa_accuracy": 0.0, "exact_accuracy": 1.0, "f1": 1.0}]
    both = score_files(given(write, **{"1": "Yes"}), references, ["vqa", "exact"], options=["lowercase=true"])
    assert both.result["vqa_accuracy"] == both.result["exact_accuracy"] == 1.0


def test_the_command_prints_one_flat_object_and_a_row_a_sample(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["score", given(write), held(write), "--metric", "vqa", "--dialect", "evalai", "--per-sample", str(rows)]
    assert cli([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert set(result) == {"accuracy", "accuracy_interval", "n", "empty", "definition"}
    assert result["definition"]["dialect"] == "evalai"
    assert err.startswith("note: 1 of 3 predictions are empty")
    written = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in written] == ["1", "2", "3"]
    assert sum(row["accuracy"] for row in written) / 3 == pytest.approx(result["accuracy"])
    assert cli(words) == 0
    assert "accuracy  0.6333  (" in capsys.readouterr().out
    assert cli([*words, "--no-intervals"]) == 0
    assert "(" not in capsys.readouterr().out.splitlines()[0]
    for target, message in ((words[1], "would overwrite"), (str(tmp_path / "no" / "x"), "there is no folder")):
        assert cli([*words[:-1], target]) == 2
        assert message in capsys.readouterr().err
    assert cli(["score", str(tmp_path / "p.json"), held(write), "--metric", "vqa"]) == 2
    assert "`p.jsonl`" in capsys.readouterr().err, "the nearest name"


def test_the_command_loads_no_torch(write: Write) -> None:
    code = (
        "import sys\nfrom perceptune.cli.main import run\n"
        f"code = run(['score', '--metric', 'vqa,exact', {given(write)!r}, {write('b.jsonl', both_rows())!r}])\n"
        "print(code, [m for m in ('torch', 'transformers', 'PIL') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "0 []"


def both_rows() -> list[dict[str, Any]]:
    return [{"id": id, "answers": answers, "references": answers} for id, answers in ANSWERS.items()]


def test_scoring_of_files_knows_no_metric_by_name() -> None:
    """What a metric needs is declared by its own file: a new one needs no change here."""
    names = {*leaves("metrics"), *(leaf.module.__name__.rpartition(".")[2] for leaf in leaves("metrics").values())}
    for path in Path(score_run.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            named = {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
            if isinstance(node, ast.ImportFrom) and node.module == "perceptune.data.metrics":
                named = {alias.name for alias in node.names}
            # A column of published files has the name of a metric.
            assert not named & (names - {"caption"}), f"{path.name}, line {node.lineno}: {named}"


def test_a_list_names_the_dialects_of_metrics() -> None:
    found = {entry["name"]: entry.get("dialects") for entry in entries("metrics")}
    assert found["vqa"] == ["official", "always", "evalai", "epalm"]
    assert found["gqa"] == ["official", "lmms-eval", "epalm"]
    assert found["exact"] is None
