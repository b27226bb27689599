"""Connections that start from the LM's own states of the training answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
import runs as dwarf_runs
from perceptune.errors import UserError
from perceptune.methods.slots._connector import Connector
from perceptune.methods.slots._options import InjectionOptions
from perceptune.methods.slots._token_layout import TokenLayout
from perceptune.types import Features, Sample


def test_a_connection_is_fitted_to_what_is_wanted() -> None:
    connector = Connector(InjectionOptions(), 2, 6, 5, TokenLayout(1, 1, None, "image"))
    features = torch.randn(200, 2, 1, 6) * 3 + 1
    connector.mean.copy_(features.mean((0, 2))[:, None])
    connector.std.copy_(features.std((0, 2))[:, None])
    wanted = features[:, 1, 0] @ torch.randn(6, 5) + torch.randn(5)
    before = connector.maps[0].weight.clone()
    connector.fit(1, features[:, 1, 0], wanted)
    left = (connector(features_of(features))[1][:, 0] - wanted).var() / wanted.var()
    assert left < 0.05
    assert torch.equal(connector.maps[0].weight, before), "another level's map"
    assert connector.maps[1].weight.requires_grad


def rows(model: Any, answers: list[str]) -> list[Sample]:
    """One image for each answer."""
    images = [Path(f"{number}.png") for number in range(len(answers))]
    model.stores["image"].get = lambda media, draws=None: torch.stack([FEATURES[int(m.stem)] for m in media])
    return [
        Sample(str(n), {"image": image}, "which?", (answer,))
        for n, (image, answer) in enumerate(zip(images, answers, strict=True))
    ]


def features_of(values: torch.Tensor) -> Features:
    return Features(values, torch.ones(len(values), dtype=torch.bool))


FEATURES = torch.randn(8, 2, 1, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model(dwarfs: Path) -> Any:
    method = {"name": "epalm", "n_levels": 2, "first": 1, "last": 2, "connector_init": "answers", "standardize": False}
    return perceptune.build(dwarf_runs.recipe(dwarfs, method=method))


def test_slots_begin_as_the_states_of_the_answers(model: Any) -> None:
    answers = ["red", "blue", "red", "blue", "red", "blue", "red", "blue"]
    model.fit_to_answers(rows(model, answers))
    slots = model.method.connectors["image"](features_of(FEATURES))
    for level, layer in enumerate(model.method.entries()):
        for answer in ("red", "blue"):
            ids = torch.tensor([model.text.plain_ids("a " + answer)])
            wanted = model.lm.hidden_states_at(layer, ids, torch.ones_like(ids))[0, -1]
            got = slots[level][[a == answer for a in answers], 0].mean(0)
            other = slots[level][[a != answer for a in answers], 0].mean(0)
            assert (got - wanted).norm() < 0.5 * (other - wanted).norm()


def test_yes_and_no_name_nothing(model: Any) -> None:
    with pytest.raises(UserError, match=r"connector_init: answers needs .* two different `image` .* 1 found"):
        model.fit_to_answers(rows(model, ["yes", "No", "red"]))


def test_a_shared_connection_is_refused(dwarfs: Path) -> None:
    method = {"name": "epalm-lin", "n_levels": 2, "connector_init": "answers"}
    with pytest.raises(UserError, match="no `shared_connector`"):
        perceptune.build(dwarf_runs.recipe(dwarfs, method=method))


def test_training_starts_from_them(dwarfs: Path, tmp_path: Path) -> None:
    method = {"name": "epalm", "n_levels": 2, "first": 1, "last": 2, "connector_init": "answers"}
    for name, init in (("fitted", "answers"), ("random", "random")):
        given = dwarf_runs.recipe(dwarfs, method=method | {"connector_init": init}, train={"steps": 0})
        perceptune.train(given, tmp_path / name)
    fitted, random = (dwarf_runs.tensors(tmp_path / name) for name in ("fitted", "random"))
    differing = {name for name in fitted if not torch.equal(fitted[name], random[name])}
    assert differing == {f"connectors.image.maps.{n}.{part}" for n in range(2) for part in ("weight", "bias")}
