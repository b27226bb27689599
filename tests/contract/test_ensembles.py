"""Ensembles: several runs on one frozen LM answer by the mean of their probabilities.

pytest tests/contract/test_ensembles.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
import support
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.lm.architectures import Capabilities
from perceptune.lm.generation.beam_search import beam_search
from perceptune.models.base import AdaptedModel
from perceptune.models.conversation import Conversation
from perceptune.models.ensemble import Ensemble, load_ensemble
from perceptune.models.run_folder import load, save_run
from perceptune.types import Consensus, Decoding, Sample

METHODS: dict[str, dict[str, Any]] = {
    "epalm": {"name": "epalm", "n_levels": 2, "standardize": False},
    "lora": {"name": "lora", "n_levels": 2, "first": 2, "last": 3, "standardize": False},
    "pt": {"name": "epalm-pt", "n_levels": 1, "standardize": False},
}
HOW = [Decoding(6), Decoding(6, beams=3), Decoding(6, sample=True, temperature=1.5, seed=3)]


@pytest.fixture(scope="module")
def folders(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of three methods on one LM, two of which add hooks or layers to it."""
    place = tmp_path_factory.mktemp("members")
    for seed, (name, method) in enumerate(METHODS.items()):
        given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", method=method)
        model = perceptune.build(given | {"seed": seed})
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.method.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        save_run(place / name, model)
    return {name: place / name for name in METHODS}


@pytest.fixture(scope="module")
def three(folders: dict[str, Path]) -> Ensemble:
    return load_ensemble([*folders.values()])


@pytest.fixture(scope="module")
def samples(three: Ensemble) -> list[Sample]:
    return list(make_task(three.recipe).samples("train"))[:5]


def logits_of(model: AdaptedModel, sample: Sample, tokens: list[int]) -> torch.Tensor:
    """The literal logits after a prompt and some tokens: one forward pass over the whole text."""
    prompt = model.prompt([sample])  # type: ignore[attr-defined]
    ids = torch.cat([prompt.ids, torch.tensor([tokens], dtype=torch.long)], 1)
    found: torch.Tensor = model.lm(ids, torch.ones_like(ids), prompt.slots)[0, -1]  # type: ignore[operator, union-attr]
    return found


def mean_of(models: list[AdaptedModel], sample: Sample, tokens: list[int]) -> torch.Tensor:
    return torch.stack([logits_of(model, sample, tokens).softmax(-1) for model in models]).mean(0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_and_itself_answer_as_the_run(
    folders: dict[str, Path], name: str, times: int, samples: list[Sample]
) -> None:
    alone, together = load(folders[name]), load_ensemble([folders[name]] * times)
    for decoding in HOW:
        assert together.answer(samples, decoding=decoding) == alone.answer(samples, decoding=decoding)


@torch.no_grad()
def test_each_token_is_the_likeliest_by_the_mean_of_probabilities(
    folders: dict[str, Path], three: Ensemble, samples: list[Sample]
) -> None:
    """Literally, with every run loaded on its own."""
    models = [load(folder) for folder in folders.values()]
    rows = three.generate(samples, Decoding(4))
    for sample, row in zip(samples, rows, strict=True):
        for length in range(len(row)):
            assert row[length] == int(mean_of(models, sample, row[:length]).argmax())
    assert rows != models[0].generate(samples, Decoding(4))
    [scores] = three.token_logprobs(samples[:1], decoding=Decoding(4))
    for length, (_, logprob) in enumerate(scores[: len(rows[0])]):
        expected = float(mean_of(models, samples[0], rows[0][:length])[rows[0][length]].log())
        assert logprob == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_beams_are_scored_by_the_mean_of_probabilities(three: Ensemble, samples: list[Sample]) -> None:
    """The best beam's score is at least the greedy answer's, and each row is searched as alone."""
    decoding = Decoding(5, beams=4, length_penalty=0.0)
    together = three.generate(samples, decoding)
    assert [three.generate([sample], decoding)[0] for sample in samples] == together
    greedy = three.generate(samples, replace(decoding, beams=1))
    for sample, beam, first in zip(samples, together, greedy, strict=True):
        prompt = three.prompt([sample])
        assert three.text.eos not in beam
        searched = beam_search(three.lm, prompt, decoding, eos=three.text.eos)[0]
        assert searched[: len(beam)] == beam
        texts = [[three.text.decode(tokens).strip() or "a"] for tokens in (beam, first)]
        assert len(three.rank([sample], [[*texts[0], *texts[1]]])[0]) == 2


def test_an_answer_does_not_depend_on_the_batch(three: Ensemble, samples: list[Sample]) -> None:
    for decoding in HOW:
        together = three.answer(samples, decoding=decoding)
        assert three.answer(samples[::-1], decoding=decoding, batch_size=2) == together[::-1]
    from perceptune.data.metrics.base import DocumentFrequencies

    three.frequencies = DocumentFrequencies(20, "characters", {"a": 12})
    consensus = Decoding(6, consensus=Consensus(samples=3, beams=2, weights="probability"))
    together = three.answer(samples, decoding=consensus)
    assert three.answer(samples[::-1], decoding=consensus, batch_size=1) == together[::-1]
    three.frequencies = None


@torch.no_grad()
def test_ranked_choices_have_the_mean_of_probabilities(
    folders: dict[str, Path], three: Ensemble, samples: list[Sample]
) -> None:
    models = [load(folder) for folder in folders.values()]
    choices = ["red", "blue"]
    [found] = three.rank(samples[:1], [choices])
    for choice, value in zip(choices, found, strict=True):
        tokens = three.text.target_ids(choice)
        expected = sum(
            float(mean_of(models, samples[0], tokens[:length])[token].log()) for length, token in enumerate(tokens)
        )
        assert value == pytest.approx(expected, abs=1e-4)


def test_an_lm_that_cannot_be_split_answers_the_same(three: Ensemble, samples: list[Sample]) -> None:
    expected = [three.answer(samples, decoding=decoding) for decoding in HOW]
    kept = three.lm.capabilities
    three.lm.capabilities = Capabilities(split_disabled_reason="a test")
    try:
        assert [three.answer(samples, decoding=decoding) for decoding in HOW] == expected
    finally:
        three.lm.capabilities = kept


def test_the_lm_and_the_encoder_are_loaded_once_and_media_encoded_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = load_ensemble([folders["epalm"], folders["lora"]], overrides=["cache.features=off"])
    assert two.members[0].model.lm is two.members[1].model.lm
    assert two.members[0].model.encoders["image"] is two.members[1].model.encoders["image"]
    encode, rows = type(two.encoders["image"]).forward, list[int]()

    def counted(self: Any, x: torch.Tensor, *given: Any) -> torch.Tensor:
        rows.append(len(x))
        return encode(self, x, *given)

    monkeypatch.setattr(type(two.encoders["image"]), "forward", counted)
    two.answer(list(make_task(two.recipe).samples("train"))[:1])
    assert rows == [1]


def test_a_conversation_asks_all_of_them(three: Ensemble, samples: list[Sample]) -> None:
    talk = Conversation(three, decoding=Decoding(6))
    said = talk.ask(samples[0].prompt, [*samples[0].iter_media()])
    assert said == three.answer(samples[:1], decoding=Decoding(6))[0].strip()


def test_runs_that_cannot_answer_together_are_refused(folders: dict[str, Path], dwarfs: Path, tmp_path: Path) -> None:
    data = dwarfs / "data/train.jsonl"
    other = {
        "lm": support.recipe(dwarfs / "opt", dwarfs / "encoder", data),
        "text": support.recipe(dwarfs / "lm", dwarfs / "encoder", data) | {"text": {"template": "Q: {prompt} A:"}},
    }
    for name, said in (("lm", "their frozen LMs differ: "), ("text", r"text\.template is .* and 'Q: \{prompt\} A:'")):
        save_run(tmp_path / name, perceptune.build(other[name]))
        with pytest.raises(UserError, match=rf"epalm` and `.*{name}` cannot answer together: {said}"):
            load_ensemble([folders["epalm"], tmp_path / name])
    with pytest.raises(UserError, match="at least one run"):
        load_ensemble([])
    with pytest.raises(UserError, match=r"decode\.min_new_tokens and decode\.repetition_penalty: not for an ensemble"):
        load_ensemble([folders["epalm"]]).answer([Sample("1", {}, "what?")], decoding=Decoding(6, min_new_tokens=2))
