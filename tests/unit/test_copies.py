"""Copies of a model that was read once are as good as one that is read anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import copies


@pytest.fixture
def load(dwarfs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., transformers.PreTrainedModel]:
    """Loads the tiny OPT by copies."""
    copies.share_loaded(monkeypatch)
    return lambda **given: transformers.AutoModelForCausalLM.from_pretrained(dwarfs / "opt", **given)


def test_a_copy_is_the_model_and_shares_nothing(load: Callable[..., transformers.PreTrainedModel]) -> None:
    first, second = load(), load()
    assert first.config is not second.config
    assert json.dumps(first.config.to_dict()) == json.dumps(second.config.to_dict())
    assert second.get_output_embeddings().weight is second.get_input_embeddings().weight
    ids = torch.tensor([[2, 5, 7]])
    expected = first(ids).logits
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert torch.equal(second(ids).logits, expected)
    assert torch.equal(load()(ids).logits, expected)


def test_other_arguments_are_another_model(load: Callable[..., transformers.PreTrainedModel]) -> None:
    assert load(dtype=torch.float32).dtype == torch.float32
    assert load(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load(attn_implementation="sdpa").config._attn_implementation == "sdpa"
    assert load(attn_implementation="eager").config._attn_implementation == "eager"
