"""Tiny random models that DMA is put on, each with a batch and what of its output is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    ViTConfig,
    ViTModel,
)

from perceptune.methods.dma import DMAConfig

R = 3
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE_TOKEN, QUERIES = 60, 4


class Case(NamedTuple):
    """A model, its targets, and how many of them there are."""

    model: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any]]
    targets: str | list[str] | None  # None: what DMA chooses
    matrices: int


def instructblip() -> nn.Module:
    """ViT, Q-Former with cross-attention in every second layer, and T5."""
    vision = InstructBlipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        initializer_range=0.02,
    )  # fmt: skip
    qformer = InstructBlipQFormerConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, cross_attention_frequency=2, encoder_hidden_size=24,
    )  # fmt: skip
    text = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0, pad_token_id=0,
        eos_token_id=1, bos_token_id=0, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    config = InstructBlipConfig(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=QUERIES,
        image_token_index=IMAGE_TOKEN,
    )  # fmt: skip
    model = InstructBlipForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens, std=0.02)  # zeros would make all queries the same
    return model


def question() -> dict[str, Any]:
    text = torch.arange(3, 8).expand(2, 5)
    ids = torch.cat([torch.full((2, QUERIES), IMAGE_TOKEN), text], 1)
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(2, 3, 28, 28, generator=generator), "qformer_input_ids": text,
        "qformer_attention_mask": torch.ones_like(text), "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([[5, 6, 7, 1]] * 2),
    }  # fmt: skip


def words() -> dict[str, Any]:
    return {"input_ids": torch.arange(3, 15).view(2, 6)}


def pixels() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


CASES = {
    "instructblip": Case(instructblip, question, None, 4 * 3 + 2 * 3),
    "opt": Case(
        lambda: OPTForCausalLM(
            OPTConfig(**SHAPE, vocab_size=64, ffn_dim=32, max_position_embeddings=32, word_embed_proj_dim=16, **SPECIAL)
        ),
        words, ["q_proj", "v_proj"], 4,
    ),
    "llama": Case(
        lambda: LlamaForCausalLM(
            LlamaConfig(**SHAPE, vocab_size=64, num_key_value_heads=1, intermediate_size=32, **SPECIAL)
        ),
        words, "all-linear", 14,
    ),
    "gpt2": Case(
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, n_inner=32, **SPECIAL)
        ),
        words, r".*\.h\.\d+\..*(c_attn|c_proj)", 6,
    ),
    "vit": Case(
        lambda: ViTModel(
            ViTConfig(**SHAPE, intermediate_size=32, image_size=16, patch_size=8), add_pooling_layer=False
        ),
        pixels, "all-linear", 12,
    ),
    "bert": Case(
        lambda: BertModel(BertConfig(**SHAPE, vocab_size=64, intermediate_size=32, max_position_embeddings=32)),
        words, ["query", "key", "value"], 6,
    ),
}  # fmt: skip


def model_of(name: str) -> nn.Module:
    """The same weights every time, in evaluation mode; biases and norms are neither all 0 nor all 1."""
    torch.manual_seed(0)
    model = CASES[name].model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def forward(model: Any, name: str) -> Tensor:
    """What is compared: logits, or the last states of models without any. In the model's own dtype."""
    dtype = next(model.parameters()).dtype
    batch = {key: one.to(dtype) if one.is_floating_point() else one for key, one in CASES[name].batch().items()}
    given = model(**batch)
    return given.logits if hasattr(given, "logits") else given.last_hidden_state


@torch.no_grad()  # torch chooses its kernels, and so the last bits, by what requires a gradient
def output(model: Any, name: str) -> Tensor:
    """`forward` without gradients."""
    return forward(model, name)


def config(name: str, **changes: Any) -> DMAConfig:
    """The case's targets; without dropout, rank 3."""
    return DMAConfig(**{"r": R, "dropout": 0.0, "target_modules": CASES[name].targets, **changes})


def adapted(name: str, *, moved: bool = False, **changes: Any) -> Any:
    """The model with an adapter: as it starts, or `moved` far from there."""
    model = get_peft_model(model_of(name), config(name, **changes)).eval()
    if moved:
        move(model)
    return model


def move(model: Any, seed: int = 1) -> None:
    """Changes all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
