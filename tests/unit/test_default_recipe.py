"""The recipe for data alone: what is held out, what is said of it, and which keys of the user it follows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perceptune.cli.commands.train import training_recipe
from perceptune.cli.main import parser
from perceptune.cli.parsing import place_overrides
from perceptune.config.recipe import load_recipe
from perceptune.data.recognition.form import Form
from perceptune.data.recognition.kinds import Kind, Learned, Summary
from perceptune.data.recognition.task_keys import Recognized
from perceptune.errors import UserError
from perceptune.training.default_recipe import default_recipe, split_line


def recognized(media: int = 200, *splits: str, kind: Kind = "classes", **task: str) -> Recognized:
    found = Summary(samples=4 * media, texts=4 * media, modalities=Counter(image=media), media=set(range(media)))
    form = Form("rows", "jsonl", {"train": "x"}, splits=("train", *splits))
    return Recognized("x", form, found, Learned(kind, {}, None), {"name": "jsonl", "train": "x", **task})


def made(data: Recognized, *words: str, **flags: Any) -> tuple[Any, str]:
    recipe = default_recipe(data, words=words, **flags)
    return load_recipe({"name": "run", **recipe}, words), split_line(recipe, data)


def test_a_tenth_of_the_media_is_held_out_in_two_halves() -> None:
    recipe, line = made(recognized(1000))
    assert recipe.train.hold_out.model_dump() == {"media": 100, "selecting": 0.5, "group_by": None, "seed": 4321}
    assert recipe.eval.every is not None
    assert recipe.eval.at_end
    assert "one half chooses the checkpoint" in line
    recipe, line = made(recognized(40))
    assert (recipe.train.hold_out.media, recipe.train.hold_out.selecting, recipe.eval.every) == (10, 0, None)
    assert "too few to choose" in line
    with pytest.raises(UserError, match="19 media, too few"):
        made(recognized(19))


@pytest.mark.parametrize(
    ("words", "encoder", "seconds"),
    [
        ([], None, 30), ([], "default", 30), ([], "dinov2-small", 10), (["encoders.audio.id=dinov2-small"], None, 10),
        (["encoders.audio.seconds=4"], None, 4),
    ],
)  # fmt: skip
def test_audio_is_used_as_far_as_the_encoder_takes_it(words: list[str], encoder: str | None, seconds: float) -> None:
    found = Summary(samples=200, texts=200, modalities=Counter(audio=200), media=set(range(200)), probed={"audio": {}})
    recipe, _ = made(replace(recognized(), found=found), *words, encoder=encoder)
    assert recipe.encoders["audio"].seconds == seconds


@pytest.mark.parametrize(
    ("words", "held_out", "every", "said"),
    [
        (["train.hold_out.media=30"], {"media": 30, "selecting": 0.5}, True, "30 of 200 media"),
        (["train.hold_out.selecting=0"], {"media": 20, "selecting": 0}, False, "none is chosen"),
        (["train.hold_out.selecting=1"], {"media": 20, "selecting": 1}, True, "choose the checkpoint and are reported"),
        (["train.hold_out.seed=7"], {"media": 20, "selecting": 0.5, "seed": 7}, True, "one half"),
        (["train.hold_out=null"], None, False, "nothing is held out (train.hold_out)"),
        (["train.hold_out=0.2"], 0.2, False, "0.2 of the samples"),
    ],
)
def test_keys_of_the_user_change_what_is_held_out(words: list[str], held_out: Any, every: bool, said: str) -> None:
    recipe, line = made(recognized(), *words)
    own = recipe.train.hold_out
    assert (
        own if held_out is None or isinstance(held_out, float) else {k: getattr(own, k) for k in held_out}
    ) == held_out
    assert (recipe.eval.every is not None) is every
    assert said in line


def test_groups_stay_together_beside_other_keys() -> None:
    recipe, _ = made(recognized(), "train.hold_out.media=30", group_by="scene")
    assert (recipe.train.hold_out.media, recipe.train.hold_out.group_by) == (30, "scene")
    with pytest.raises(UserError, match=r"--group-by.*`train.hold_out` is set"):
        made(recognized(), "train.hold_out=null", group_by="scene")
    with pytest.raises(UserError, match=r"--group-by.*split `validation` is given"):
        made(recognized(200, "validation"), group_by="scene")


@pytest.mark.parametrize(
    ("splits", "chooses", "said"),
    [
        (("validation",), True, "chooses the checkpoint and is reported on"),
        (("validation", "test"), True, "split `test` is reported on"),
        (("test",), False, "evaluated on split `test`"),
    ],
)
def test_given_splits_are_said_to_be_what_they_are_used_for(splits: tuple[str, ...], chooses: bool, said: str) -> None:
    recipe, line = made(recognized(200, *splits))
    assert recipe.train.hold_out is None
    assert (recipe.eval.every is not None) is chooses
    assert said in line


def test_the_length_follows_what_the_user_sets() -> None:
    data = recognized(1000)
    steps = made(data)[0].train.steps
    assert made(data, "train.batch_size=32")[0].train.steps == pytest.approx(steps / 2, abs=1)
    assert made(data, "train.epochs=2")[0].train.steps is None
    assert made(data, "train.epochs=2")[0].eval.every == "epoch"
    given = made(data, "train.steps=50")[0]
    assert (given.train.steps, given.eval.every) == (50, 5)
    with pytest.raises(UserError, match="batch_size"):
        made(data, "train.batch_size=many")


def asked(*words: str) -> Any:
    options, rest = parser().parse_known_args(["train", *words])
    place_overrides(options, rest)
    source, overrides = training_recipe(options)
    return load_recipe(source, overrides)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    for number in range(20):
        (tmp_path / f"{number}.png").touch()
    lines = [f"{number}.png,a thing of number {number}" for number in range(20)]
    (tmp_path / "rows.csv").write_text("\n".join(["image,caption", *lines]))
    return str(tmp_path / "rows.csv")


def test_a_model_named_by_its_key_is_one_named_by_its_flag(rows: str, dwarfs: Path) -> None:
    models = {"lm": str(dwarfs / "lm"), "encoder": str(dwarfs / "encoder")}
    flags = asked("--data", rows, "--lm", models["lm"], "--encoder", models["encoder"])
    keys = asked("--data", rows, f"lm.id={models['lm']}", f"encoders.image.id={models['encoder']}")
    assert flags == keys
    assert flags.method.options()["peft"]["target_modules"] == "all-linear"


def test_groups_need_media_that_are_held_out(rows: str) -> None:
    with pytest.raises(UserError, match=r"--group-by goes with --data and no recipe.*train.hold_out.group_by"):
        asked("small", "--data", rows, "--group-by", "x")
    with pytest.raises(UserError, match="--group-by goes with --data"):
        asked("--task", "jsonl", "--group-by", "x")
