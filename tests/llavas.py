"""Runs on dwarfs that LLaVA's layout holds, their methods far from any neutral start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

import perceptune
import support
from perceptune.data.build_task import make_task
from perceptune.models.slots.model import SlotModel

SHAPE: dict[str, Any] = {"tokens": "all", "slot_positions": "sequential"}
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
LINEAR: dict[str, Any] = {"name": "limber", **SHAPE}
# Method, LM, and other sections of the recipe.
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "linear": (LINEAR, "llama", {}),
    "mlp": ({**LINEAR, "mapper": "mlp", "mapper_width": 20}, "llama", {}),
    "mlp with LoRA": (
        {"name": "lora", **SHAPE, "mapper": "mlp", "standardize": False, "peft": LORA, "levels": [2]}, "llama", {},
    ),
    "chat": (LINEAR, "chat", {"text": {"template": "chat", "system": 'in a "word"'}}),
    "tied, no free row": ({**LINEAR, "mapper": "mlp"}, "tied", {"text": {"template": "{prompt}\n'A\\': "}}),
    "start token": (LINEAR, "opt", {}),
}  # fmt: skip


def save_parts(folder: Path) -> Path:
    """The dwarfs that the cases name, with data."""
    support.save_lm(folder / "llama")
    support.save_chat_lm(folder / "chat")
    _save(folder / "tied", LlamaConfig, num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=True)
    _save(folder / "opt", OPTConfig, bos=True, ffn_dim=48, max_position_embeddings=128)
    support.save_encoder(folder / "encoder")
    support.save_data(folder / "data", rows=4)
    return folder


def _save(folder: Path, config: Any, *, bos: bool = False, **shape: Any) -> None:
    """An LM with as many rows as its tokenizer has tokens."""
    torch.manual_seed(0)
    given = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **support.SPECIAL, **shape}
    model = AutoModelForCausalLM.from_config(config(vocab_size=len(support.VOCABULARY), **given))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    support.tokenizer(bos=bos).save_pretrained(folder)


def recipe(parts: Path, method: dict[str, Any], lm: str = "llama", **changes: Any) -> dict[str, Any]:
    """A recipe with these parts; `changes` replace sections."""
    encoders = {"image": {"id": str(parts / "encoder"), "norm": "none"}}
    found: dict[str, Any] = support.recipe(
        parts / lm, parts / "encoder", parts / "data/train.jsonl", method=method, **{"encoders": encoders, **changes}
    )
    return found


def built(given: dict[str, Any]) -> SlotModel:
    """The model of a recipe, scrambled."""
    model = perceptune.build(given, ready=False)
    assert isinstance(model, SlotModel)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.fit_statistics(list(make_task(model.recipe).samples("train")))
    return model.eval()
