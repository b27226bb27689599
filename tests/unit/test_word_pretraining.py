"""Mappers that are first trained towards the LM's own states of the words in the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import blips
import perceptune
import runs as dwarf_runs
import support
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.methods.parts.word_grounding import grounding_loss
from perceptune.models.slots.word_targets import WordTargets, content_words, find_words, word_targets
from perceptune.training import init_from, word_pretraining
from perceptune.types import Sample, Slots

METHOD = {"name": "epalm", "n_levels": 2, "first": 1, "last": 2, "prompt": "none"}


def given(dwarfs: Path, words: dict[str, Any] | None, steps: int = 0, **method: Any) -> dict[str, Any]:
    """A training of the dwarfs with word pre-training, before so many steps."""
    train = support.train_section(steps=steps, pretrain_words=words, batch_size=4)
    return dwarf_runs.recipe(dwarfs, method={**METHOD, **method}, train=train)


def test_words_name_something() -> None:
    text = "A Dog's ball, and 2 merry-go-rounds on the Straße"
    assert [word for word, *_ in content_words(text)] == ["dog's", "ball", "merry-go-rounds", "straße"]
    assert [text[start:end].lower() for _, start, end in content_words(text)] == [
        word for word, *_ in content_words(text)
    ]


def samples_of(*captions: str) -> list[Sample]:
    return [Sample(str(n), {"image": Path(f"{n}.png")}, "which?", (text,)) for n, text in enumerate(captions)]


def test_words_of_one_answer_are_left_out_and_occurrences_are_bounded() -> None:
    found = find_words(samples_of("a red dog", "a red ball", "dog on a red sofa", "dog dog"), 2)
    assert {word: [target for _, target in answers] for word, answers in found.items()} == {
        "dog": ["a red dog", "dog on a red sofa"], "red": ["a red dog", "a red ball"],
    }  # fmt: skip
    assert all(not sample.media for answers in found.values() for sample, _ in answers)


@pytest.mark.parametrize("captions", [("1 2", "1 2"), ("a dog", "the dog"), ("red", "green", "blue")])
def test_answers_without_words_are_refused(captions: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"train.pretrain_words: needs at least two content words .* [01] found"):
        find_words(samples_of(*captions), 4)


@pytest.mark.parametrize("prompt", ["none", "plain"])  # with one, no text states are kept
def test_targets_are_the_lms_states_of_the_words(dwarfs: Path, prompt: str) -> None:
    model = perceptune.build(given(dwarfs, {}, prompt=prompt))
    assert model.reuses_texts == (prompt == "none")
    samples = samples_of("red dog", "red", "big dog")
    targets = word_targets(model, find_words(samples, 9))
    assert dict(targets.numbers) == {"dog": 0, "red": 1}
    assert list(targets.states) == [1, 2]
    for layer, states in targets.states.items():
        seen: dict[str, list[torch.Tensor]] = {"dog": [], "red": []}
        for sample in samples:  # one token per character, the end token last
            ids = torch.tensor([model.text.training_ids(sample, sample.targets[0])[0]])
            row = model.lm.hidden_states_at(layer, ids, torch.ones_like(ids))[0, -1 - len(sample.targets[0]) : -1]
            for word in set(sample.targets[0].split()) & set(seen):
                at = sample.targets[0].index(word)
                seen[word].append(row[at : at + 3].mean(0))
        means = torch.stack([torch.stack(own).mean(0) for own in seen.values()])
        torch.testing.assert_close(states, means - means.mean(0), rtol=1e-4, atol=1e-5)


def test_rows_without_a_medium_and_words_of_other_rows_have_no_part() -> None:
    states = torch.randn(3, 8)
    targets = WordTargets({"red": 0, "blue": 1, "dog": 2}, {1: states})
    slots = torch.randn(3, 2, 8)
    of = Slots("image", 1, {1: slots}, torch.tensor([True, False, True]))
    loss = targets.loss([of], ["a red", "dog", "Blue, and red"], 0.1)
    expected = grounding_loss(slots[[0, 2]], states[:2], torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 0.1)
    assert torch.equal(loss, expected)
    assert targets.loss([of], ["1", "dog", "2"], 0.1) is None
    assert targets.loss([], ["red"] * 3, 0.1) is None


def likeness(run: Path) -> torch.Tensor:
    """Cosines (photos, words) of the slots of a run and its targets at the first layer, and what each photo shows."""
    model = perceptune.load(run)
    samples = list(make_task(model.recipe).samples("train"))
    targets = word_targets(model, find_words(samples, 8))
    [slots] = model.method.build_slots(model.encode(samples), len(samples))
    cosines = functional.cosine_similarity(slots.states[1], targets.states[1][None], dim=-1)
    own = torch.tensor([targets.numbers[sample.targets[0]] for sample in samples])
    is_own = functional.one_hot(own, len(targets.numbers)).bool()
    return cosines[is_own].mean() - cosines[~is_own].mean()


def test_a_photos_own_word_becomes_the_likeliest(dwarfs: Path, tmp_path: Path) -> None:
    perceptune.train(given(dwarfs, None), tmp_path / "without")
    perceptune.train(given(dwarfs, {"epochs": 20, "lr": 0.01}), tmp_path / "with")
    assert abs(likeness(tmp_path / "without")) < 0.2
    assert likeness(tmp_path / "with") > 0.5
    before, after = (dwarf_runs.tensors(tmp_path / name) for name in ("without", "with"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"connectors.image.maps.{n}.{part}" for n in range(2) for part in ("weight", "bias")
    }
    assert json.loads((tmp_path / "with/meta.json").read_text())["pretrain_words"] == {
        "epochs": 20.0, "lr": 0.01, "temperature": 0.07, "occurrences": 8,
    }  # fmt: skip
    assert "pretrain_words" not in json.loads((tmp_path / "without/meta.json").read_text())


def test_only_the_mappers_get_a_gradient(dwarfs: Path) -> None:
    """A gradient that is left over would be part of the training's first step."""
    model = perceptune.build(given(dwarfs, {}, per_layer="scale-bias"))
    samples = list(make_task(model.recipe).samples("train"))
    targets = word_targets(model, find_words(samples, 8))
    maps, config = list(model.method.mappers().parameters()), model.recipe.train.pretrain_words
    before = {name: value.clone() for name, value in model.method.named_parameters()}
    word_pretraining._step(
        model,
        torch.optim.AdamW(maps),
        maps,
        model.collate(samples),
        [one.targets[0] for one in samples],
        targets,
        config,
    )
    moved = {name for name, value in model.method.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {f"connectors.image.{name}" for name, _ in model.method.connectors["image"].named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_killed_one_begins_again_and_a_resumed_training_is_past_it(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = given(dwarfs, {"epochs": 2}, steps=4, mapper="qp", mapper_queries=2, mapper_heads=2, mapper_depth=1)
    perceptune.train(recipe, tmp_path / "whole")
    step, taken = word_pretraining._step, []

    def killed(*args: Any) -> float:
        taken.append(1)
        if len(taken) == 4:
            raise ConnectionAbortedError
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(word_pretraining, "_step", killed)
        with pytest.raises(ConnectionAbortedError):
            perceptune.train(recipe, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(word_pretraining, "_step", lambda *args: taken.append(1) or step(*args))
        dwarf_runs.stop_after(recipe, tmp_path / "killed", 2)
    assert len(taken) == 4 + 6
    with monkeypatch.context() as patch:
        patch.setattr(init_from, "pretrain_words", None)
        perceptune.train(run=tmp_path / "killed", resume=True)
    assert dwarf_runs.same(tmp_path / "whole", tmp_path / "killed")


def test_what_has_no_mappers_to_train_is_refused(dwarfs: Path, tmp_path: Path) -> None:
    recipe = given(dwarfs, {})
    frozen = {**recipe, "train": {**recipe["train"], "freeze": ["connectors"]}, "method": {**METHOD, "prompt": "plain"}}
    with pytest.raises(UserError, match=r"^train.pretrain_words: method `epalm` trains no mappers of slots$"):
        perceptune.train(frozen, tmp_path / "frozen")
    attended = {**recipe, "method": {"name": "depalm-xattn-narrow", "n_levels": 2, "cross_width": 8, "cross_heads": 2}}
    with pytest.raises(UserError, match=r"^train.pretrain_words: method `depalm-xattn-narrow` trains no mappers"):
        perceptune.train(attended, tmp_path / "attended")
    blip = blips.recipe(
        blips.save_blip(tmp_path / "blip", "llama"), dwarfs / "data/train.jsonl", train=recipe["train"],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^train.pretrain_words: method `\w+` trains no mappers of slots$"):
        perceptune.train(blip, tmp_path / "blip-run")


def test_minutes_do_not_count_it(dwarfs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--minutes does not go with `train.pretrain_words`"):
        perceptune.train(given(dwarfs, {}), tmp_path / "run", minutes=1)
    assert not list((tmp_path / "run").glob("*.json"))
