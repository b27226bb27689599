"""The parser: options that are given twice, addresses in place of files, and help that is read one line at a time."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest

from perceptune.cli.main import parser, run


def options(of: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.Action]]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, one in action.choices.items():
                yield from options(one, f"{name} {word}".strip())
        else:
            yield name, action


@pytest.mark.parametrize(
    "words",
    [
        ["answer", "RUN", "color?", "--image", "a.png", "--image", "b.png"],
        ["eval", "RUN", "--data", "a", "--data=b"],
        ["serve", "RUN", "--port", "8000", "--port", "8001"],
        ["train", "--lm", "a", "--lm", "a"],
        ["data", "check", "FILE", "--split", "a", "--split", "b"],
    ],
)
def test_an_option_given_twice_is_not_the_last_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 2
    assert re.search(r"argument --\w+: given twice, `.+` and `.+`: it takes one", capsys.readouterr().err)


def test_options_that_may_be_repeated_are(capsys: pytest.CaptureFixture[str]) -> None:
    given = parser().parse_args(["features", "RECIPE", "--split", "a", "--split", "b"])
    assert given.split == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["answer", "RUN", "color?", "--image", "https://a.example/x.png"], "--image: `https://a.example/x.png` is an"),
        (["answer", "RUN", "what?", "--audio", "s3://bucket/x.wav"], "--audio: `s3://bucket/x.wav` is an address"),
        (["predict", "RUN", "https://a.example/x.png"], "`https://a.example/x.png` is an address"),
        (["eval", "RUN", "--predictions", "https://a.example/x.jsonl"], "--predictions: `https://a.example/x.jsonl`"),
        (["show-attention", "RUN", "what?", "--image", "http://a.example/x.png"], "--image: `http://a.example/x.png`"),
    ],
)  # fmt: skip
def test_an_address_is_not_taken_for_a_path(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["answer", "RUN", "color?", "--image", ""], "--image"),
        (["answer", "RUN", "color?", "--choices="], "--choices"),
        (["eval", "RUN", "--predictions", ""], "--predictions"),
        (["eval", "RUN", "--data="], "--data"),
        (["serve", "RUN", "--api-key-file", ""], "--api-key-file"),
        (["predict", "RUN", ""], "FILE|DIR"),
        (["predict", "RUN", "FILE", "--out", ""], "--out"),
        (["data", "convert", "csv", "--to", ""], "--to"),
        (["score", "", "FILE", "--metric", "exact"], "predictions"),
        (["train", "--run", ""], "--run"),
        (["show", ""], "RECIPE|RUN"),
    ],
)
def test_nothing_is_no_value(words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a script gives it whose variable is not set."""
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 2
    assert f"argument {name}: is empty" in capsys.readouterr().err


def test_a_question_a_prompt_and_lists_may_be_empty() -> None:
    assert parser().parse_args(["answer", "RUN", ""]).question == ""
    assert parser().parse_args(["predict", "RUN", "FILE", "--prompt", ""]).prompt == ""
    parser().parse_args(["serve", "RUN", "--allowed-origins", "", "--allowed-hosts", ""])


def test_each_help_is_understood_alone() -> None:
    """None goes on with the one before, or into the next one."""
    for command, action in options(parser()):
        text, where = action.help or "", f"{command} {action.option_strings or action.dest}: {action.help}"
        assert not re.match(
            r"(the same (for|with|as)|of |against |likewise|these |this one|default:|may be|as )", text
        ), where
        assert not re.search(r"(, (of|for|from|with|and|or|to|in|on|at|by)|[,;:(])$", text), where
        assert text.count("(") == text.count(")"), where
