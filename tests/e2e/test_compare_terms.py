"""The terms of a comparison: what is refused before its first run, and what its methods may have of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from comparisons import command, write_recipe
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.tools.compare.plan import make_plan


@pytest.fixture(scope="module")
def written(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("compare"), dwarfs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "epalm,epalm-lim"], "unknown method `epalm-lim`; did you mean `epalm-lin`"),
        (["--grid", "train.lrr=1,2"], "unknown key `train.lrr`; did you mean `lr`"),
        (["--grid", "trian.lr=1,2"], "unknown key `trian`; did you mean `train`"),
        (["--grid", "method.n_level=1,2"], "unknown key `n_level`; did you mean `n_levels`"),
        (["--grid", "train.steps=1,2"], "every run of a comparison has the same budget"),
        (["--grid", "eval.split=train,test"], "varies keys of `train` and `method` only"),
        (["--grid", "train.lr"], "not of the form key=value,value"),
        (["--grid", "train.lr=-1,2"], "`train.lr`"),
        (["--seeds", "0,one"], "whole numbers"),
        (["eval.split=train"], "nothing to test on"),
        (["eval.every=2", "eval.during_split=test"], "would choose on `test`"),
        (["method.n_levels=9"], "n_levels is 9"),
        (["eval.samples=-1"], "`eval.samples`"),
    ],
)
def test_mistakes_are_found_before_the_first_run(
    words: list[str], said: str, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(command(written, tmp_path / "out", *words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_method_may_need_a_precision_of_its_own_but_no_budget(written: Path) -> None:
    methods: dict[str, Any] = {
        "epalm": {"n_levels": 2},
        "full": {"unfreeze": {"lm": 1e-5}, "train.precision": "float32"},
    }
    given = {**yaml.safe_load(written.read_text()), "compare": {"methods": methods}}
    given["train"] = {**given["train"], "precision": "bfloat16"}
    plan = make_plan([given])
    assert [entry.recipe.train.precision for entry in plan.entries] == ["bfloat16", "float32"]
    given["compare"] = {"methods": {"epalm": {"n_levels": 2}, "full": {"train.steps": 3}}}
    with pytest.raises(UserError, match=r"unequal terms: the recipes have train\.steps"):
        make_plan([given])


def test_a_label_may_search_a_grid_of_its_own_that_is_as_large(written: Path) -> None:
    own: dict[str, Any] = {"method.unfreeze.lm": [1e-6, 1e-4]}
    methods: dict[str, Any] = {"epalm": {"n_levels": 2}, "full": {"unfreeze": {"lm": 1e-5}, "compare.grid": own}}
    given = {**yaml.safe_load(written.read_text()), "compare": {"methods": methods, "grid": {"train.lr": [1e-3, 1e-2]}}}
    plan = make_plan([given])
    assert [entry.settings for entry in plan.entries] == [
        ({"train.lr": 1e-3}, {"train.lr": 1e-2}), ({"method.unfreeze.lm": 1e-6}, {"method.unfreeze.lm": 1e-4}),
    ]  # fmt: skip
    full = plan.entries[1]
    assert full.with_(full.settings[1], 0).method.options()["unfreeze"] == {"lm": 1e-4}
    assert full.recipe.compare.grid == {}, "another grid later does not make finished runs another recipe's"
    alike = make_plan([given], grid={"train.lr": [0.1]})
    assert [entry.settings for entry in alike.entries] == [({"train.lr": 0.1},)] * 2
    own["method.unfreeze.lm"] = [1e-6, 1e-5, 1e-4]
    with pytest.raises(UserError, match="`full` is chosen from 3 settings, the others from 2"):
        make_plan([given])
    own["train.steps"] = [1]
    with pytest.raises(UserError, match=r"grid key `train\.steps`: every run of a comparison has the same budget"):
        make_plan([given])


def test_several_recipes_need_one_budget(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    given = yaml.safe_load(written.read_text())
    other.write_text(yaml.safe_dump(given | {"name": "other", "method": "epalm-lin"}))
    assert cli(["compare", str(written), str(other), "--out", str(tmp_path / "out"), "method.n_levels=2"]) == 0
    result = json.loads((tmp_path / "out/compare.json").read_text())
    assert [(row["label"], row["method"]) for row in result["rows"]] == [("dwarf", "epalm"), ("other", "epalm-lin")]
    given["train"]["steps"] = 7
    other.write_text(yaml.safe_dump(given | {"name": "other"}))
    assert cli(["compare", str(written), str(other), "--dry-run"]) == 2
    assert "unequal terms: the recipes have train.steps = 6 and 7" in capsys.readouterr().err
