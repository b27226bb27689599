"""DMA as a method on the splice backbone: the LM's maps, the encoder's, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import perceptune
import support
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from rows import row

SMALL = {"r": 2, "dropout": 0.0}


def recipe(dwarfs: Path, lm: str = "lm", **method: Any) -> dict[str, Any]:
    given = {"name": "epalm-dma", "n_levels": 2, "dma": {**SMALL, "target_modules": "all-linear"}, **method}
    return support.recipe(dwarfs / lm, dwarfs / "encoder", dwarfs / "data/train.jsonl", method=given)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_starts_as_the_method_without_it(family: str) -> None:
    r = row("epalm-dma", family)
    with torch.no_grad():
        for name, parameter in r.method.named_parameters():
            if "dma_v" in name:
                parameter.zero_()
    plain = FrozenLM(support.random_lm(family))
    assert torch.equal(r.logits(), plain(r.ids, r.mask, r.plan()))
    shared = [name for name in r.method.state_dict() if "dma_u" in name or "dma_core" in name]
    assert len(shared) == 2 * len({name.rpartition("_")[2] for name in shared})


@pytest.mark.parametrize("encoder", [None, {**SMALL, "target_modules": r".*(q|v)_proj"}])
@pytest.mark.parametrize("lm", ["lm", "opt"])
def test_a_run_is_trained_saved_and_loaded(
    lm: str, encoder: dict[str, Any] | None, dwarfs: Path, tmp_path: Path
) -> None:
    given = recipe(dwarfs, lm, encoder_dma=encoder)
    perceptune.train(given, tmp_path)
    before, after = perceptune.build(given), perceptune.load(tmp_path)
    samples = list(make_task(after.recipe).samples("train"))[:4]
    for part in ("lm", "encoders"):
        old, new = (getattr(model, part).state_dict() for model in (before, after))
        assert set(old) == set(new)
        assert all(torch.equal(old[name], new[name]) for name in old)
    stored = load_file(tmp_path / "method.safetensors")
    own = dict(before.method.named_parameters())
    assert [name for name, p in own.items() if torch.equal(stored[name], p)] == []
    assert any(name.startswith("encoder_peft.image") for name in own) == (encoder is not None)
    features = [model.eval().encode(samples)["image"].values for model in (before, after)]
    assert (features[0] - features[1]).abs().max() > 1e-3 if encoder else torch.equal(*features)
    assert after.answer(samples) == perceptune.load(tmp_path).answer(samples)


def test_an_adapted_encoder_gives_features_with_gradients_that_are_not_kept(dwarfs: Path) -> None:
    model = perceptune.build(recipe(dwarfs, encoder_dma={**SMALL, "core": "cp"}))
    samples = list(make_task(model.recipe).samples("train"))[:3]
    assert model.encode(samples)["image"].values.requires_grad
    assert model.get_cached(samples) is None
    kinds = model.method.encoder_peft["image"].names
    assert len(kinds) == 4 * 6  # queries, keys, values, output, two of the feed-forward part
    groups = {group["name"]: {name for name, _ in group["named"]} for group in model.method.param_groups()}
    assert all(name.startswith("peft.") for name in groups["prompt"])
    assert any(name.startswith("encoder_peft.") for name in groups["connector"])


def test_lora_s_recipe_takes_dma_too(dwarfs: Path) -> None:
    method = {"name": "lora", "peft": {"peft_type": "DMA", **SMALL, "core": "cp", "target_modules": ["q_proj"]}}
    model = perceptune.build(support.recipe(dwarfs / "lm", dwarfs / "encoder", method=method))
    assert sum(p.numel() for p in model.method.peft.parameters()) == 2 * (32 + 32) + 2 + 4 * 2


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"dma": {"rank": 4}}, "method.dma: DMA has no key `rank`; did you mean"),
        ({"dma": {"core": "cq"}}, "method.dma: DMAConfig: `core` cannot be `cq`"),
        ({"dma": {"r": 2, "target_modules": ["q_prj"]}}, r"method.dma: target_modules: .* did you mean `q_proj`"),
        ({"dma": {"r": 2, "target_modules": ["lm_head", "q_proj"]}}, "`lm_head` is not inside the LM's blocks"),
        ({"encoder_dma": {"r": 2, "target_modules": ["q_prj"]}}, "method.encoder_dma: target_modules: .*`q_proj`"),
    ],
)
@pytest.mark.filterwarnings("ignore:DMA's group")
def test_what_is_refused(method: dict[str, Any], words: str, dwarfs: Path) -> None:
    with pytest.raises(UserError, match=words):
        perceptune.build(recipe(dwarfs, **method))
