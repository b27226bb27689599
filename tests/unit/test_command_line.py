"""The parser: options that are given twice, addresses in place of files, and help that is read one line at a time."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from perceptune.cli.main import parser, run
from perceptune.cli.parsing import place_overrides


def helps(of: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser itself and those of its commands, by name."""
    yield name, of
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, one in action.choices.items():
                yield from helps(one, f"{name} {word}".strip())


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
        ["answer", "RUN", "color?", "--choices", "a,b", "--choices", "c,d"],
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


def test_help_loads_neither_torch_nor_transformers() -> None:
    """Of no command: each is asked in one new process."""
    code = (
        "import sys, contextlib\nfrom perceptune.cli.main import run\n"
        f"for words in {[name.split() for name, _ in helps(parser())]!r}:\n"
        "    with contextlib.suppress(SystemExit):\n        run([*words, '--help'])\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.count("usage: ") >= 27
    assert said.splitlines()[-1] == "[]"


def test_the_examples_of_each_command_are_understood() -> None:
    for name, one in helps(parser()):
        if not name or " " in name:
            continue
        lines = re.findall(r"^  (?:\w+=\w+ )?perceptune (.*)$", one.epilog or "", flags=re.M)
        assert 1 <= len(lines) <= 3, name
        for line in lines:
            assert line.split()[0] == name
            options, rest = parser().parse_known_args(shlex.split(line))
            assert place_overrides(options, rest) == []


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        (["train", "train.steps=2", "--run", "r", "small", "seed=1"], {"recipe": "small", "n": 2}),
        (["train", "--run", "r", "seed=1"], {"recipe": None, "n": 1}),
        (["eval", "RUN", "--json", "decode.beams=3"], {"run": "RUN", "n": 1}),
        (["answer", "RUN", "--json", "what is a=b?", "decode.beams=3"], {"question": "what is a=b?", "n": 1}),
        (["serve", "a=RUN", "decode.beams=3", "--port", "1", "b=RUN"], {"runs": ["a=RUN", "b=RUN"], "n": 1}),
        (["compare", "a", "seed=1", "--json", "b", "lm.id=x"], {"recipes": ["a", "b"], "n": 2}),
        (["data", "check", "F", "--json", "lm.id=x"], {"source": "F", "n": 1}),
    ],
)
def test_overrides_may_stand_anywhere(words: list[str], taken: dict[str, object]) -> None:
    options, rest = parser().parse_known_args(words)
    assert place_overrides(options, rest) == []
    assert {**vars(options), "n": len(options.overrides)}.items() >= taken.items()


@pytest.mark.parametrize(
    "words", [["train", "small", "--run", "r", "other"], ["eval", "R", "--json", "word"], ["list", "methods", "a=b"],
              ["train", "--shuffled"], ["serve", "R", "--bad"]],
)  # fmt: skip
def test_words_that_nothing_takes_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 2
    assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err


def test_each_help_says_something_of_its_own() -> None:
    for command, action in options(parser()):
        where = f"{command} {action.option_strings or action.dest}: {action.help}"
        assert action.help, where
        assert not re.search(
            r"\b(so many|anew|likewise|hears?|tells?|told|pictures?|sounds?|clips?)\b|[.]$", action.help
        ), where
