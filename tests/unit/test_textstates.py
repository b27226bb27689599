"""States of texts: the same wherever they are kept, and the same after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import support
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.text_state_cache import TextStates

LAYER = 2


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM(support.random_lm("llama"))


def texts(n: int = 40) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 12, (n,), generator=generator).tolist()
    return [tuple(torch.randint(4, 60, (length,), generator=generator).tolist()) for length in lengths]


def batch(chosen: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, chosen))
    ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in chosen])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in chosen])
    return ids, mask


def test_states_are_those_of_the_lm_wherever_they_are_kept(lm: FrozenLM, tmp_path: Path) -> None:
    all_texts = texts()
    ids, mask = batch(all_texts[5:12])
    expected = lm.hidden_states_at(LAYER, ids, mask)
    found = {}
    for megabytes, uses in ((1, 200), (0, 200), (0, 40)):
        states = TextStates(lm, LAYER, megabytes, folder=tmp_path, disk_megabytes=1)
        states.precompute(all_texts * 2, uses)
        found[states.kept] = states.get(ids, mask)
        assert torch.allclose(found[states.kept][mask.bool()], expected[mask.bool()], atol=1e-5)
    assert set(found) == {"memory", "disk", "nowhere"}
    assert torch.equal(found["memory"], found["disk"])


def test_after_preparing_nothing_is_computed_again(
    lm: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_texts = texts()
    computed: list[int] = []
    hidden_states_at = FrozenLM.hidden_states_at
    monkeypatch.setattr(
        FrozenLM,
        "hidden_states_at",
        lambda self, layer, ids, mask: computed.append(len(ids)) or hidden_states_at(self, layer, ids, mask),
    )
    for megabytes in (1, 0):
        states = TextStates(lm, LAYER, megabytes, folder=tmp_path, disk_megabytes=1)
        states.precompute(all_texts, 400)
        assert sum(computed) == len(set(all_texts))
        states.get(*batch(all_texts[:7]))
        assert sum(computed) == len(set(all_texts))
        computed.clear()
    again = TextStates(lm, LAYER, 0, folder=tmp_path, disk_megabytes=1)
    again.precompute(all_texts, 400)
    assert computed == []  # the disk remembers


def test_bits_do_not_depend_on_what_a_killed_run_had_computed(lm: FrozenLM, tmp_path: Path) -> None:
    all_texts = texts()
    whole = TextStates(lm, LAYER, 0, folder=tmp_path / "whole", disk_megabytes=1)
    whole.precompute(all_texts, 400)
    part = TextStates(lm, LAYER, 0, folder=tmp_path / "part", disk_megabytes=1)
    part.precompute(all_texts, 400, rank=1, world=2)  # every second group only
    rest = TextStates(lm, LAYER, 0, folder=tmp_path / "part", disk_megabytes=1)
    rest.precompute(all_texts, 400)
    ids, mask = batch(all_texts)
    assert torch.equal(whole.get(ids, mask), rest.get(ids, mask))
    part.refresh()
    assert torch.equal(whole.get(ids, mask), part.get(ids, mask))


def test_too_much_is_kept_nowhere_and_another_lm_never_read(lm: FrozenLM, tmp_path: Path) -> None:
    tight = TextStates(lm, LAYER, 0, folder=tmp_path, disk_megabytes=0)
    tight.precompute(texts(), 400)
    assert tight.kept == "nowhere"
    first = TextStates(lm, LAYER, 0, folder=tmp_path, disk_megabytes=1)
    first.precompute(texts(), 400)
    other = FrozenLM(support.random_lm("llama"))
    with torch.no_grad():
        other.layers[0].self_attn.q_proj.weight[0, 0] += 1  # one value
    second = TextStates(other, LAYER, 0, folder=tmp_path, disk_megabytes=1)
    second.precompute(texts(), 400)
    ids, mask = batch(texts()[:3])
    seen = mask.bool()
    assert not torch.equal(first.get(ids, mask)[seen], second.get(ids, mask)[seen])
    assert torch.allclose(second.get(ids, mask)[seen], other.hidden_states_at(LAYER, ids, mask)[seen], atol=1e-5)


def test_the_folder_is_that_of_the_weights_that_texts_pass_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of the embeddings counts; of other large weights some values do, and layers above none."""
    monkeypatch.setattr("perceptune.lm.text_state_cache.SAMPLED", 16)
    own = FrozenLM(support.random_lm("llama"))
    weights = TextStates(own, LAYER, 0, folder=tmp_path)._weights

    def changes(weight: torch.Tensor, place: tuple[int, int]) -> bool:
        before = weights()
        with torch.no_grad():
            weight[place] += 1e-3
        return weights() != before

    assert changes(own.model.get_input_embeddings().weight, (17, 3))
    assert changes(own.layers[LAYER - 1].mlp.up_proj.weight, (0, 0))
    assert not changes(own.layers[LAYER - 1].mlp.up_proj.weight, (0, 1)), "one value in ninety-six is looked at"
    assert not changes(own.layers[LAYER].mlp.up_proj.weight, (0, 0))


def test_used_without_preparing_it_remembers_what_it_has_seen(lm: FrozenLM) -> None:
    states = TextStates(lm, LAYER, 1)
    ids, mask = batch(texts()[:5])
    assert torch.equal(states.get(ids, mask), states.get(ids, mask))
    assert states.kept == "memory"
