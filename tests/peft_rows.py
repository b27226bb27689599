"""pytest plugin that gives PEFT's own tests rows for DMA and tiny models that need no hub: see `peft_suite.py`.

A test of PEFT takes its rows from lists of its module, at the time of its collection: the lists are filled with ours.
Tests without such a list are about one of PEFT's methods and are left out.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from perceptune.peft import DMAConfig

MODELS = Path(os.environ.get("PEFT_SUITE_MODELS", "models"))
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**SHAPE, **SPECIAL, "intermediate_size": 64, "num_key_value_heads": 2}
BERT = {**SHAPE, "intermediate_size": 64}
TINY = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**SHAPE, **SPECIAL, ffn_dim=64, word_embed_proj_dim=32)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    # PEFT skips what is called gpt2 for methods whose Conv1D it does not know
    "conv1d": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_embd=32, n_layer=2, n_head=4, **SPECIAL)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=1024, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
    "bert": lambda: BertModel(BertConfig(**BERT)),
    "bert-classifier": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "llama-classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA)),
}
MODEL_LISTS = {
    "PEFT_DECODER_MODELS_TO_TEST": ["opt", "llama", "conv1d"],
    "SMALL_GRID_MODELS": ["opt", "llama"],
    "PEFT_ENCODER_DECODER_MODELS_TO_TEST": ["t5"],
    "PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST": ["bert"],
    "PEFT_SEQ_CLS_MODELS_TO_TEST": ["bert-classifier", "llama-classifier"],
}
TASKS = {
    "test_decoder_models": "CAUSAL_LM",
    "test_encoder_decoder_models": "SEQ_2_SEQ_LM",
    "test_feature_extraction_models": "FEATURE_EXTRACTION",
    "test_seq_classifier": "SEQ_CLS",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "DMA": {"target_modules": ["lin0"]},
    "DMA by pattern": {"target_modules": "lin0"},
    "DMA on another": {"target_modules": ["lin1"], "r": 4},
    "DMA on both": {"target_modules": ["lin0", "lin1"], "r": 4},
    "DMA with rank_pattern": {"target_modules": ["lin0", "lin1"], "r": 4, "rank_pattern": {"lin1": 2}},
    "DMA with modules_to_save": {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
    "DMA, CP": {"target_modules": ["lin0", "lin1"], "core": "cp", "r": 8},
    "DMA, scalar Gamma": {"target_modules": ["lin0"], "gamma": "scalar"},
    "DMA, diagonal Gamma": {"target_modules": ["lin0", "lin1"], "gamma": "diagonal", "core": "cp"},
    "DMA in groups": {"target_modules": ["lin0", "lin1"], "groups": {"first": "lin0"}},
}
LISTS: dict[str, list[Any]] = {
    "TEST_CASES": [
        *((name, "MLP", DMAConfig, {"dropout": 0.0, **settings}) for name, settings in SETTINGS.items()),
        ("DMA, Conv1D", "EmbConv1D", DMAConfig, {"dropout": 0.0, "target_modules": ["conv1d"]}),
    ],
    "ALL_PEFT_CONFIG_CLASSES": [DMAConfig],
    "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": [
        ("DMA Same", "dma", DMAConfig, {"target_modules": ["lin0"], "init_weights": False, "dropout": 0.0},
         {"target_modules": ["lin0"], "init_weights": False, "dropout": 0.0}),
        ("DMA Different", "dma", DMAConfig, {"target_modules": ["lin0"], "init_weights": False, "dropout": 0.0},
         {"target_modules": ["lin1"], "init_weights": False, "dropout": 0.0, "core": "cp"}),
    ],
    "MIXED_ADAPTER_TEST_CASES": [
        ("DMA mixed adapter", DMAConfig(target_modules=["lin0"], init_weights=False),
         DMAConfig(target_modules=["lin0"], r=16, core="cp", init_weights=False)),
    ],
}  # fmt: skip
# What of PEFT's tests is about something that DMA does not have.
LEFT_OUT = {
    "mixed_adapter_batches_lora_conv": "adapters on embeddings and convolutions",
    "mixed_adapter_batches_mha_raises": "adapters on torch's MultiheadAttention",
    "layer_indexing.*config_kwargs1": "`layers_to_transform` with `all-linear`, as in PEFT's LoRA",
    # PEFT lowers the rate for methods that it makes diverge; rows of both maps do with DMA
    r"parameters_after_loading_model\[DMA.*(both|rank_pattern|diagonal|groups)": "SGD with a rate of 0.5",
}
BY_EXAMPLE = {"TestMixedAdapterBatches", "TestDefaultTargetModules"}  # rows beside the test: ours follow LoRA's


def pytest_configure(config: pytest.Config) -> None:
    """Make the models, and a stand-in for diffusers: PEFT's tests import one class that ours do not use."""
    if "diffusers" not in sys.modules:
        stand_in: Any = ModuleType("diffusers")
        stand_in.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
        sys.modules["diffusers"] = stand_in
    for name, make in TINY.items():
        if not (MODELS / name).exists():
            torch.manual_seed(0)
            make().save_pretrained(MODELS / name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill the lists of a test before pytest reads them."""
    module = metafunc.module
    task = TASKS.get(module.__name__.rpartition(".")[2])
    lists: dict[str, list[Any]] = {name: [str(MODELS / one) for one in ids] for name, ids in MODEL_LISTS.items()}
    if task is not None:
        common = {"task_type": task, "r": 4, "dropout": 0.0}
        lists["ALL_CONFIGS"] = [
            (DMAConfig, common | {"target_modules": None}),
            (DMAConfig, common | {"target_modules": "all-linear", "exclude_modules": ".*pooler.*", "core": "cp"}),
        ]
    for name, rows in (LISTS | lists).items():
        if isinstance(getattr(module, name, None), list):
            getattr(module, name)[:] = rows
    if metafunc.cls is not None and metafunc.cls.__name__ in BY_EXAMPLE:
        for mark in metafunc.definition.iter_markers("parametrize"):
            mark.args[1][:] = _like_loras(mark.args[1])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that have no row of DMA, and skip what DMA does not have."""
    ours = [item for item in items if _has_dma(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _has_dma(item)])
    items[:] = ours
    for item in items:
        for pattern, reason in LEFT_OUT.items():
            if re.search(pattern, item.name):
                item.add_marker(pytest.mark.skip(reason=f"not in DMA: {reason}"))


def _has_dma(item: pytest.Item) -> bool:
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(value is DMAConfig or isinstance(value, DMAConfig) for value in given)


def _like_loras(rows: list[Any]) -> list[Any]:
    """Return our rows, and DMA's in place of PEFT's LoRA."""
    if LoraConfig in rows:
        return [DMAConfig]
    mine = [row for row in rows if isinstance(row, tuple) and any(isinstance(one, DMAConfig) for one in row)]
    loras = [row for row in rows if isinstance(row, tuple) and any(isinstance(one, LoraConfig) for one in row)]
    return mine or [tuple(_dma(one) if isinstance(one, LoraConfig) else one for one in row) for row in loras]


def _dma(lora: LoraConfig) -> DMAConfig:
    return DMAConfig(
        r=lora.r, target_modules=lora.target_modules, modules_to_save=lora.modules_to_save, init_weights=False
    )
