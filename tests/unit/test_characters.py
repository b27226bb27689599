"""Captions in scripts without blanks: their tokens, when these are taken, and what they are never compared with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perceptune.cli.main import run as cli
from perceptune.data.metrics import caption
from perceptune.data.metrics.base import Scored, character_tokens, ptb_tokens
from perceptune.data.tasks import _scores
from perceptune.errors import UserError
from perceptune.evaluation.results import cross_dataset_gap, shown_name, tokenizer_of
from perceptune.evaluation.runner import EvalOutput
from perceptune.evaluation.score_files.run import score_files
from perceptune.tools.compare.report import _require_one_tokenizer
from perceptune.types import Sample
from shelves import put, task

CHINESE = ["一只棕色的狗在草地上跑。", "一只狗跑过草地", "一个女人在弹吉他。"]


@pytest.fixture(autouse=True)
def notes_again() -> Iterator[None]:
    _scores._note_once.cache_clear()
    yield
    _scores._note_once.cache_clear()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("一只狗，在跑。", "一 只 狗 在 跑"),
        ("「約翰·史密斯」 々〇𠀀", "約 翰 史 密 斯 々 〇 𠀀"),
        ("猫がハ\u309aンを\uff8a\uff9eスで", "猫 が パ ン を バ ス で"),
        ("ลูกแมว", "ลู ก แ ม ว"),
        ("ຫມາ\u200bຍິ້ມ", "ຫ ມ າ ຍິ້ ມ"),
        ("ឆ្កែរត់។", "ឆ្ កែ រ ត់"),
        ("ခွေး၊ ပြေး။", "ခွေး ပြေး"),
        ("3只CAT's 和１２个", "3 只 cat 's 和 12 个"),
    ],
)
def test_each_character_is_a_token(text: str, tokens: str) -> None:
    assert character_tokens(text) == tokens.split()


@pytest.mark.parametrize(
    "text", ["A brown dog's cat, isn't it?", "Ein Hund läuft.", "한국어 문장이다", "собака бежит", ""]
)
def test_scripts_with_blanks_have_ptb_tokens(text: str) -> None:
    assert character_tokens(text) == ptb_tokens(text)
    found = caption.score([text or "a"], [[text or "a", text]])
    assert found.definition["tokenizer"] == "ptb"
    assert "not comparable with values on Penn" not in found.definition["caution"]


def test_the_script_of_most_letters_decides() -> None:
    def chosen(*references: str, **options: Any) -> str:
        return str(caption.score(["a"], [references], caption.Options(**options)).definition["tokenizer"])

    assert chosen("一只狗 dog 在草地上", "12345 12345!") == "characters"
    assert chosen("一只狗", "a brown dog") == "ptb"
    assert chosen("一只狗", tokenizer="ptb") == "ptb"
    assert chosen("a dog", tokenizer="characters") == "characters"
    with pytest.raises(ValueError, match="characters"):
        caption.Options(tokenizer=cast(Any, "letters"))


def test_a_nearly_right_chinese_caption_is_worth_something() -> None:
    right = [[text] for text in CHINESE]
    texts = ["一只狗在草地上跑", "一只猫跑过草地", "一个女人弹吉他"]
    words = caption.score(texts, right, caption.Options(tokenizer="ptb"))
    found = caption.score(texts, right)
    assert words.summary["BLEU-1"] == pytest.approx(0, abs=1e-6)
    assert found.summary["BLEU-1"] > 0.7
    apart, apart_right = ([" ".join(character_tokens(text)) for text in some] for some in (texts, CHINESE))
    spaced = caption.score(apart, [[text] for text in apart_right], caption.Options(tokenizer="none"))
    assert spaced.summary == found.summary
    assert found.definition["caution"].startswith("tokenizer `characters`")


def captions(folder: Path, name: str = "jsonl", **options: Any) -> tuple[Any, Any]:
    rows = [{"image": None, "captions": [text, text[2:]]} for text in CHINESE]
    put(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    made = task(name, train=folder / "a.jsonl", metric="CIDEr", **options)
    return made, made.samples("train")


def test_a_task_says_once_which_tokenizer_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, samples = captions(tmp_path)
    for _ in range(2):
        assert made.score(CHINESE, samples).definition["tokenizer"] == "characters"
    said = capsys.readouterr().err
    assert said.count("captions: tokenizer `characters` (scripts without blanks): not comparable") == 1
    made, samples = captions(tmp_path, metric_tokenizer="characters")
    assert made.score(CHINESE, samples).definition["tokenizer"] == "characters"
    assert capsys.readouterr().err == ""
    made, samples = captions(tmp_path, metric_tokenizer="ptb")
    assert made.score(CHINESE, samples).definition["tokenizer"] == "ptb"
    assert "takes a whole caption for one word: set `characters`" in capsys.readouterr().err


def test_the_key_is_for_captions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`metric_tokenizer` is for captions"):
        task("jsonl", train=tmp_path / "a.jsonl", metric_tokenizer="ptb")


def test_files_of_captions_are_scored_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(n), "references": [text], "prediction": text} for n, text in enumerate(CHINESE)]
    path = str(put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    found = score_files(path, path, ["caption"], intervals=False)
    assert found.result["definition"]["tokenizer"] == "characters"
    assert score_files(path, path, ["caption"], options=["tokenizer=ptb"], intervals=False).result[
        "definition"]["tokenizer"] == "ptb"  # fmt: skip
    assert cli(["score", path, path, "--metric", "caption", "--no-intervals"]) == 0
    assert "note: caption: tokenizer `characters` (scripts without blanks)" in capsys.readouterr().err


def judged(tokenizer: str, **more: Any) -> EvalOutput:
    scores = {"CIDEr": 1.0, "rouge1_f1_mean": 0.5}
    definition = {"tokenizer": tokenizer, "rouge": {"tokenizer": "letters"}, **more}
    return EvalOutput(Scored(scores, [scores], definition), [])


def test_no_gap_between_values_of_different_tokenizers() -> None:
    sample = Sample("a", {}, "")
    gaps = cross_dataset_gap(cast(Any, [sample]), judged("ptb"), cast(Any, [sample]), judged("characters"))
    assert gaps["CIDEr"] == {"in": 1.0, "out": 1.0, "difference": None, "tokenizers": ["ptb", "characters"]}
    assert gaps["rouge1_f1_mean"]["difference"] == 0
    same = cross_dataset_gap(cast(Any, [sample]), judged("ptb"), cast(Any, [sample]), judged("ptb"))
    assert same["CIDEr"] == {"in": 1.0, "out": 1.0, "difference": 0.0, "interval": [0.0, 0.0]}


def test_the_tokenizer_of_a_part() -> None:
    parts = {"parts": {"a": {"tokenizer": "ptb"}, "a_b": {"tokenizer": "characters"}, "c": {"metric": "exact"}}}
    keys = ("a_CIDEr", "a_b_CIDEr", "c_accuracy", "CIDEr")
    assert [tokenizer_of(parts, key) for key in keys] == ["ptb", "characters", None, None]
    assert [shown_name(key, parts) for key in keys] == ["a_CIDEr", "a_b_CIDEr (characters)", "c_accuracy", "CIDEr"]
    assert tokenizer_of("no definition", "CIDEr") is None


def test_a_comparison_refuses_results_of_two_tokenizers() -> None:
    def outcome(label: str, tokenizer: str) -> Any:
        return SimpleNamespace(entry=SimpleNamespace(label=label), tests={0: {"definition": {"tokenizer": tokenizer}}})

    _require_one_tokenizer("CIDEr", [outcome("a", "ptb"), outcome("b", "ptb")])
    with pytest.raises(
        UserError, match=r"`CIDEr` of a, seed 0 has the tokenizer `ptb`, that of b, seed 0 `characters`"
    ):
        _require_one_tokenizer("CIDEr", [outcome("a", "ptb"), outcome("b", "characters")])
