"""Consensus decoding of a run: what is stored with it, and where its results name it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import perceptune
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.evaluation.first_look import first_look, report_lines
from perceptune.evaluation.reference_answers import verify_reference_answers
from perceptune.evaluation.results import describe_decoding
from perceptune.models.run_folder import RECIPE, load
from perceptune.models.run_location import CARD, FREQUENCIES, NEIGHBOURS, local_run
from perceptune.serving.limits import Limits
from perceptune.tools.export.bundle import export
from servers import load_runs

ON = ["decode.consensus.samples=4", "decode.consensus.temperature=1.5"]


def test_every_result_names_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The frequencies are counted at the first use, from the training data, and stored."""
    assert not (run / FREQUENCIES).is_file()
    assert cli(["eval", str(run), *ON]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    results = json.loads((run / "results.json").read_text())
    assert results["decoding"]["consensus"] == {
        "samples": 4, "temperature": 1.5, "beams": 3, "weights": "uniform", "neighbours": 0,
        "regression": 0, "ridge": 0.3,
    }  # fmt: skip
    counted = json.loads((run / FREQUENCIES).read_text())
    assert results["consensus_references"]["documents"] == counted["documents"] > 0
    words = describe_decoding(results)
    assert words is not None
    assert "of 4 samples at temperature 1.5 and 3 beams" in words
    assert words in printed
    assert words[1:50] in (run / CARD).read_text()
    assert words in report_lines(first_look(run))[1]
    assert cli(["report", str(run), "--markdown", str(run / "page.md")]) == 0
    assert words[:50] in (run / "page.md").read_text()
    capsys.readouterr()
    assert cli(["eval", str(run)]) == 0
    plain = json.loads((run / "results.json").read_text())
    assert plain["decoding"]["consensus"] is None
    assert describe_decoding(plain) is None
    assert "consensus decoding" not in " ".join(capsys.readouterr().out.split())
    assert "onsensus decoding" not in (run / CARD).read_text()


def test_stored_frequencies_are_read_without_the_training_data(run: Path, tmp_path: Path) -> None:
    load(run, overrides=ON)
    first = (run / FREQUENCIES).read_bytes()
    export(run, tmp_path / "shared.zip")
    recipe = (run / RECIPE).read_text()
    (run / RECIPE).write_text(recipe.replace("train.jsonl", "gone.jsonl"))
    frequencies = load(run, overrides=ON).frequencies
    assert frequencies is not None
    shared = load(tmp_path / "shared.zip", overrides=ON).frequencies
    assert shared == frequencies
    assert (run / FREQUENCIES).read_bytes() == first
    (run / FREQUENCIES).unlink()
    with pytest.raises(UserError, match=rf"decode\.consensus: .* has no {FREQUENCIES}, so its training data is needed"):
        load(run, overrides=ON)
    assert load(run).frequencies is None, "not needed without"


def test_a_server_refuses_it(run: Path) -> None:
    with pytest.raises(UserError, match=r"decode\.consensus: not for the server, .*; set decode\.consensus=null"):
        load_runs([str(run)], Limits(), overrides=ON)


def test_a_training_stores_frequencies_if_its_recipe_needs_them(dwarfs: Path, tmp_path: Path) -> None:
    import runs

    decode = {"max_new_tokens": 4, "consensus": {"samples": 2, "beams": 2}}
    given = runs.recipe(dwarfs, decode=decode, eval={"every": 3, "during_samples": 4})
    perceptune.train(given, tmp_path / "run")
    assert json.loads((tmp_path / "run" / FREQUENCIES).read_text())["documents"] == 12
    assert verify_reference_answers(tmp_path / "run")["same"], "its stored answers are found again"


def test_predictions_name_it_and_what_it_compares_by(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    pictures[0].rename(tmp_path / "one" / "a.png")
    ask = ["--prompt", "what?"]
    assert cli(["predict", str(run), str(tmp_path / "one"), *ON, *ask, "--out", str(tmp_path / "out.jsonl")]) == 0
    about = json.loads((tmp_path / "out.jsonl.meta.json").read_text())
    assert about["decoding"]["consensus"]["samples"] == 4
    assert about["consensus_references"]["documents"] > 0


def test_ranked_choices_are_not_called_consensus_decoding() -> None:
    results = {"decoding": {"consensus": {"samples": 4, "beams": 3, "temperature": 0.7}}}
    assert describe_decoding(results) is not None
    assert describe_decoding({**results, "rank": "choices"}) is None


def test_training_captions_are_stored_only_if_the_recipe_asks_and_never_shared(dwarfs: Path, tmp_path: Path) -> None:
    import runs

    decode = {"max_new_tokens": 4, "consensus": {"samples": 2, "beams": 2, "neighbours": 2, "regression": 8}}
    run = tmp_path / "run"
    perceptune.train(runs.recipe(dwarfs, decode=decode), run)
    model = load(run)
    assert verify_reference_answers(run)["same"]
    results = perceptune.evaluate(run)
    assert results["consensus_references"]["neighbours"]["media"] == 12
    assert "and the captions of the 2 nearest training media" in str(describe_decoding(results))
    assert "that a regression on all training media expects (weight 8)" in str(describe_decoding(results))
    export(run, tmp_path / "shared.zip")
    shared = load(tmp_path / "shared.zip")
    assert shared.decoding.consensus is not None
    assert (shared.neighbours, shared.decoding.consensus.uses_training_captions) == (None, False)
    assert not [*local_run(tmp_path / "shared.zip").glob(NEIGHBOURS)]
    recipe = (run / RECIPE).read_text()
    (run / RECIPE).write_text(recipe.replace("train.jsonl", "gone.jsonl"))
    again = load(run).neighbours
    assert again is not None
    assert again.digest() == model.neighbours.digest()  # type: ignore[union-attr]
    (run / NEIGHBOURS).unlink()
    said = rf"decode\.consensus: .* has no {NEIGHBOURS}, so its training data is needed"
    with pytest.raises(UserError, match=said):
        load(run)
    assert load(run, overrides=[f"decode.consensus.{key}=0" for key in ("neighbours", "regression")]).neighbours is None
    assert not (run / NEIGHBOURS).exists(), "an override stores nothing"
