"""What `auto` stands for: measured or remembered, stored in the run, said in its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.config.recipe import load_recipe, recipe_names
from perceptune.errors import UserError
from perceptune.lm import precision
from perceptune.lm.precision import Choice, Products, choose, products_of
from perceptune.models import build
from perceptune.models.build import choose_dtype, dtypes_of, settle, slower_here
from perceptune.models.run_folder import read_recipe
from perceptune.utils.run_log import read_log

CPU = torch.device("cpu")
LARGE = Products((((1024, 1024), 12),), 8, 4, 128)
DTYPES = {"train.precision": "auto", "encoders.image.dtype": "auto", "eval.dtype": "auto"}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """An empty cache, and a measurement that says so many seconds; `count` is how often it was made."""
    given = {"float32": 1.0, "bfloat16": 1.0, "count": 0}

    def measure(products: Products, *, packed: bool) -> dict[str, float]:
        given["count"] += 1
        return {name: given[name] for name in precision.DTYPES}

    monkeypatch.setattr(precision, "measure", measure)
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(tmp_path / "own-cache"))
    return given


@pytest.fixture
def in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is faster in bfloat16, whatever this one is."""
    monkeypatch.setattr(build, "choose", lambda *_, **__: Choice("bfloat16", "it is faster", 2.0))


@pytest.mark.parametrize(("seconds", "dtype"), [(0.9, "bfloat16"), (0.96, "float32"), (1.0, "float32"), (3, "float32")])
def test_bfloat16_must_be_five_per_cent_faster(measured: dict[str, Any], seconds: float, dtype: str) -> None:
    measured["bfloat16"] = seconds
    choice = choose(LARGE, packed=True, device=CPU)
    assert choice.dtype == dtype
    assert f"{1 / seconds:.2f} times as fast" in choice.reason


def test_it_is_measured_once_for_each_machine_and_lm(
    measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(2):
        choose(LARGE, packed=True, device=CPU)
    assert measured["count"] == 1
    choose(LARGE, packed=False, device=CPU)
    choose(Products(LARGE.maps, 4, 4, 128), packed=True, device=CPU)
    assert measured["count"] == 3
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    choose(LARGE, packed=True, device=CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    choose(LARGE, packed=True, device=CPU)
    monkeypatch.setattr(torch, "__version__", "2.0")
    choose(LARGE, packed=True, device=CPU)
    monkeypatch.setattr(precision, "_processor", lambda: "another one")
    choose(LARGE, packed=True, device=CPU)
    assert measured["count"] == 7


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"seconds": {"float32": 1}}', '{"seconds": {"float32": 1, "bfloat16": 0}}']
)
def test_a_damaged_memory_is_measured_anew(measured: dict[str, Any], text: str, tmp_path: Path) -> None:
    choose(LARGE, packed=True, device=CPU)
    (remembered,) = (tmp_path / "own-cache/precision").iterdir()
    remembered.write_text(text)
    assert choose(LARGE, packed=True, device=CPU).dtype == "float32"
    assert measured["count"] == 2
    assert json.loads(remembered.read_text())["seconds"] == {"float32": 1.0, "bfloat16": 1.0}


def test_a_cache_that_cannot_be_written_is_no_mistake(
    measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(tmp_path / "file"))
    assert choose(LARGE, packed=True, device=CPU).dtype == "float32"


def test_where_bfloat16_does_not_run_it_is_float32(measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'")

    monkeypatch.setattr(precision.torch, "ones", refuse)
    choice = choose(LARGE, packed=True, device=CPU)
    assert (choice.dtype, choice.speedup, measured["count"]) == ("float32", None, 0)
    assert "does not run" in choice.reason


def test_an_accelerator_takes_bfloat16_where_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(precision, "runs_bfloat16", lambda device: True)
    assert choose(LARGE, packed=True, device=device).dtype == "bfloat16"
    monkeypatch.setattr(precision, "runs_bfloat16", lambda device: False)
    assert choose(LARGE, packed=True, device=device).dtype == "float32"


def test_a_tiny_lm_is_not_measured(measured: dict[str, Any], dwarfs: Path) -> None:
    recipe = load_recipe(support.recipe(dwarfs / "lm", dwarfs / "encoder"))
    choice = choose_dtype(recipe, CPU)
    assert (choice.dtype, measured["count"]) == ("float32", 0)


@pytest.mark.parametrize("family", sorted(support.LM_CONFIGS))
def test_the_products_are_those_of_the_lm(family: str) -> None:
    lm = support.random_lm(family)
    found = products_of(lm, lm.config.get_text_config())
    inside = sum(
        parameter.numel() for name, parameter in lm.named_parameters()
        if parameter.dim() == 2 and not any(word in name for word in ("embed", "wte", "wpe", "lm_head"))
    )  # fmt: skip
    assert found.multiplications == inside
    assert (found.heads, found.head_size) == (4, 8)


def test_the_measurement_runs_and_leaves_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "BUDGET", 0.0)
    before = torch.get_rng_state()
    for packed in (True, False):
        seconds = precision.measure(Products((((8, 16), 2), ((4000, 8), 1)), 2, 1, 8), packed=packed)
        assert set(seconds) == {"float32", "bfloat16"}
        assert min(seconds.values()) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_trained_itself_is_float32(in_bfloat16: None, dwarfs: Path) -> None:
    recipe = load_recipe(support.recipe(dwarfs / "lm", dwarfs / "encoder"), [f"{k}={v}" for k, v in DTYPES.items()])
    assert set(dtypes_of(settle(recipe)[0]).values()) == {"bfloat16"}
    for unfrozen, kept in (
        ("[lm]", ["float32", "bfloat16", "float32"]), ("[encoder]", ["bfloat16", "float32", "bfloat16"]),
        ("[lm,encoder]", ["float32"] * 3),
    ):  # fmt: skip
        settled, choice = settle(load_recipe(recipe, [f"method.unfreeze={unfrozen}"]))
        assert list(dtypes_of(settled).values()) == kept
        assert choice is not None
    assert settle(load_recipe(recipe, ["method.name=full", "method.n_levels=2"]))[0].train.precision == "float32"
    explicit = load_recipe(recipe, ["train.precision=float32", "eval.dtype=float32", "encoders.image.dtype=float32"])
    assert settle(explicit) == (explicit, None)


@pytest.mark.parametrize(
    ("keys", "choice", "said"),
    [
        ({"train.precision": "bfloat16"}, Choice("float32", "", 0.5), "train.precision: bfloat16 takes 2.0 times"),
        ({"train.precision": "bfloat16"}, Choice("float32", "", 0.99), None),
        ({"train.precision": "bfloat16"}, Choice("bfloat16", "", 2.0), None),
        ({"train.precision": "float32"}, Choice("bfloat16", "", 2.0), "train.precision: float32 takes 2.0 times"),
        ({"train.precision": "auto"}, Choice("bfloat16", "", 2.0), None),
        ({"eval.dtype": "bfloat16", "encoders.image.dtype": "bfloat16"}, Choice("float32", "", 0.2),
         "encoders.image.dtype, eval.dtype: bfloat16 takes 5.0 times"),
        ({"train.precision": "float32", "method.unfreeze": "[lm]"}, Choice("bfloat16", "", 2.0), None),
        ({"train.precision": "bfloat16"}, Choice("float32", "too small"), None),
    ],
)  # fmt: skip
def test_a_dtype_that_is_slower_here_is_said(
    dwarfs: Path, keys: dict[str, str], choice: Choice, said: str | None
) -> None:
    recipe = load_recipe(support.recipe(dwarfs / "lm", dwarfs / "encoder"), [f"{k}={v}" for k, v in keys.items()])
    line = slower_here(recipe, choice)
    assert (line is None) == (said is None)
    assert said is None or (line is not None and line.startswith(said) and "\n" not in line)


def test_a_training_stores_what_auto_was(
    in_bfloat16: None, dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl")
    recipe["encoders"] = {"image": {"id": str(dwarfs / "encoder"), "dtype": "auto"}}
    recipe |= {"eval": {"dtype": "auto"}, "train": support.train_section(steps=2, save_every=1)}
    perceptune.train(recipe, run)
    assert dtypes_of(read_recipe(run)) == dict.fromkeys(DTYPES, "bfloat16")
    told = {**dict.fromkeys(DTYPES, "bfloat16"), "reason": "it is faster"}
    first = read_log(run)[0]
    assert (first["event"], first["precision"]) == ("start", told)
    assert capsys.readouterr().err == ""

    def elsewhere(*_: Any, **__: Any) -> Choice:
        raise AssertionError("a run says itself what its dtypes are")

    monkeypatch.setattr(build, "choose", elsewhere)
    assert perceptune.load(run).dtype == torch.bfloat16
    assert perceptune.load(run, overrides=["eval.dtype=auto"]).dtype == torch.bfloat16
    assert perceptune.evaluate(run)["dtype"] == "bfloat16"
    perceptune.train(recipe, run, resume=True)
    perceptune.train(run=run, resume=True)
    assert cli(["verify", str(run)]) == 0
    with pytest.raises(UserError, match=r"train\.precision = 'bfloat16', the recipe now says 'float32'"):
        perceptune.train(recipe, run, overrides=["train.precision=float32"], resume=True)
    capsys.readouterr()
    assert cli(["show", str(run)]) == 0
    assert "(it is faster)" in " ".join(capsys.readouterr().out.split())


def test_an_explicit_dtype_that_is_slower_is_said_when_a_training_starts(
    in_bfloat16: None, dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl")
    recipe["train"] = support.train_section(steps=1, precision="float32")
    perceptune.train(recipe, tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: train.precision: float32 takes 2.0 times as long as bfloat16 here")


def test_show_and_doctor_say_what_auto_is(in_bfloat16: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["show", "captions"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "train.precision: bfloat16, encoders.image.dtype: bfloat16, eval.dtype: bfloat16 (it is faster)" in shown
    cli(["doctor", "paper/epalm"])
    found = " ".join(capsys.readouterr().out.split())
    assert "`auto` is bfloat16: it is faster" in found
    assert "train.precision: float32 takes 2.0 times as long" in found


def test_recipes_of_papers_say_their_dtypes_and_the_others_leave_them_to_the_machine() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        if name.startswith("paper/"):
            wanted = "bfloat16" if name.startswith("paper/petal/") else "float32"
            assert recipe.train.precision == wanted, name
            assert {recipe.eval.dtype, *(one.dtype for one in recipe.encoders.values())} == {"float32"}, name
    for name in ("demo", "captions", "video", "compare-easy-vqa"):
        assert load_recipe(name).train.precision == "auto"
    captions = load_recipe("captions")
    assert (captions.encoders["image"].dtype, captions.eval.dtype) == ("auto", "auto")
