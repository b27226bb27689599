"""Ranks of DMA by pattern, as in PEFT's LoRA, where matrices that share factors have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel, get_peft_model

from peft_models import adapted, config, model_of, output
from perceptune.methods.dma import DMAConfig, DMALinear

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:DMA's group", "error:The following rank_pattern"
)
LOW_AND_HIGH = {"low": r".*layers\.0\..*", "high": r".*layers\.1\..*"}


@pytest.mark.parametrize("core", ["tucker", "cp"])
@pytest.mark.parametrize(
    ("pattern", "groups", "expected"),
    [
        ({"fc1": 5}, None, {"fc1": 5, "fc2": 3, "q_proj": 3}),
        ({"fc1|fc2": 4}, None, {"fc1": 4, "fc2": 4, "q_proj": 3}),
        ({r"layers\.1\.self_attn\.\w+": 2}, LOW_AND_HIGH, {"layers.0.self_attn": 3, "layers.1.self_attn": 2, "fc1": 3}),
    ],
)
def test_factors_have_the_rank_of_their_pattern(
    pattern: dict[str, int], groups: Any, expected: dict[str, int], core: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"target_modules": "all-linear", "rank_pattern": pattern, "groups": groups, "core": core}
    model = adapted("opt", moved=True, **options)
    ranks = {
        name: (layer.dma_u["default"].shape[0], layer.dma_v["default"].shape[1], layer.dma_p["default"].shape[0])
        for name, layer in model.named_modules()
        if isinstance(layer, DMALinear)
    }
    for part, rank in expected.items():
        found = {ranks[name] for name in ranks if part in name}
        assert found == {(rank, rank, rank)}, part
    model.save_pretrained(tmp_path)
    assert (output(PeftModel.from_pretrained(model_of("opt"), str(tmp_path)), "opt") == output(model, "opt")).all()


def test_another_adapter_may_have_other_ranks() -> None:
    model = adapted("opt", target_modules="all-linear", rank_pattern={"fc1": 5})
    model.add_adapter("second", config("opt", target_modules="all-linear", rank_pattern={"fc2": 2}))
    layer = model.get_submodule("base_model.model.model.decoder.layers.0.fc1")
    assert [tuple(layer.dma_core[name].shape) for name in ("default", "second")] == [(5, 5, 5), (3, 3, 3)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank_pattern": {"fc1": 0}}, "`rank_pattern.fc1` is a rank, a whole number greater than 0, not 0"),
        ({"rank_pattern": {"(": 2}}, r"`rank_pattern` is no regular expression"),
        (
            {"rank_pattern": {"q_proj": 2}},
            "rank_pattern: `.*q_proj` has rank 2, but `.*k_proj`, with which it shares factors, 3: .*`groups`",
        ),
    ],
)
def test_ranks_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_peft_model(model_of("opt"), DMAConfig(r=3, target_modules="all-linear", **settings))


def test_a_pattern_without_a_match_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match=r"rank_pattern keys did not match any targeted module.*fc_1"):
        get_peft_model(model_of("opt"), DMAConfig(r=3, target_modules="all-linear", rank_pattern={"fc_1": 2}))
