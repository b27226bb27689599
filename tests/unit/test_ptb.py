"""Caption tokens: Stanford's where they were recorded, and the short way for plain captions gives the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceptune.data.metrics import _ptb
from perceptune.data.metrics._ptb import ptb_tokens

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/captions.json").read_text(encoding="utf-8"))
PIECES = [*"abz ,.", " .", ". ", "cannot", "gonna", "st", "ill", "etc", "mr", "A", "Ill", "no", "  ", "dog", ", "]
STEADY = settings(deadline=None, derandomize=True, database=None, max_examples=300)


@pytest.mark.parametrize("row", GOLDEN["tokenizer"], ids=lambda row: row["text"][:30])
def test_recorded_lines(row: dict[str, str]) -> None:
    assert " ".join(ptb_tokens(row["text"])) == row["tokens"]


def test_recorded_captions() -> None:
    for image in GOLDEN["data"].values():
        assert " ".join(ptb_tokens(image["hyp"])) == image["hyp_tok"]
        assert [" ".join(ptb_tokens(text)) for text in image["refs"]] == image["refs_tok"]


@STEADY
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_the_short_way_gives_the_same_tokens(text: str) -> None:
    short = ptb_tokens(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ptb, "_PLAIN", re.compile("(?!)"))  # matches nothing
        assert ptb_tokens(text) == short


def test_the_short_way_is_taken() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ptb, "_TOKEN", None)
        assert ptb_tokens("A dog, in a hat, runs .") == ["a", "dog", "in", "a", "hat", "runs"]
        assert ptb_tokens("a dog runs.") == ["a", "dog", "runs"]
        assert ptb_tokens("") == ptb_tokens(" .") == []


@STEADY
@given(st.text(max_size=30))
def test_any_text_gives_words(text: str) -> None:
    tokens = ptb_tokens(text)
    assert all(token and not re.search(r"\s", token) for token in tokens)
    assert not {".", ",", ":", ";", "?", "!", "'", "-", "--", "...", '"'} & set(tokens)
