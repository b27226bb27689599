"""Dwarfs for the tests: tiny random models of real architectures, saved to disk, and a small made-up data set."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    ViTConfig,
    ViTModel,
)

from perceptune.lm.architectures import attention_for

VOCABULARY = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *string.ascii_lowercase,
    *string.ascii_uppercase,
    *string.digits,
    *" ?.:,-<>/",
]
SIZE = len(VOCABULARY) + 4  # spare rows, as published models have
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    **SPECIAL,
}
_KV = {"num_key_value_heads": 2, "intermediate_size": 48}
LM_CONFIGS: dict[str, Any] = {
    # OPT-350M's shape: embeddings in a smaller space, projected in and out, layer norm after each block.
    "opt": lambda: OPTConfig(
        **_BASE, ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "llama": lambda: LlamaConfig(**_BASE, **_KV),
    "qwen2": lambda: Qwen2Config(**_BASE, **_KV),
    "qwen3": lambda: Qwen3Config(**_BASE, **_KV, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=4, n_head=4, n_positions=128, **SPECIAL),
    "gpt-neox": lambda: GPTNeoXConfig(**_BASE, intermediate_size=48),
    # A window much shorter than the tests' texts: slots must be exempt from it.
    "gemma3": lambda: Gemma3TextConfig(**_BASE, **_KV, head_dim=8, sliding_window=6),
    # Caps scores and logits; every second layer has the window.
    "gemma2": lambda: Gemma2Config(
        **_BASE, **_KV, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, attn_logit_softcapping=5.0,
        final_logit_softcapping=6.0,
    ),
    "mistral": lambda: MistralConfig(**_BASE, **_KV, sliding_window=6),
    # Attention and feed-forward side by side, half of a head turned by its position.
    "phi": lambda: PhiConfig(**_BASE, intermediate_size=48, partial_rotary_factor=0.5),
    "bloom": lambda: BloomConfig(**_BASE),  # positions come from the attention mask (ALiBi)
    "gptj": lambda: GPTJConfig(
        vocab_size=SIZE, n_embd=32, n_layer=4, n_head=4, n_positions=128, rotary_dim=4, n_inner=48, **SPECIAL
    ),
}  # fmt: skip


def random_lm(family: str, attention: str = "sdpa") -> Any:
    """A tiny random causal LM whose logits differ clearly between inputs; random numbers go on behind its own."""
    model, state = _random_lm(family, attention)
    torch.set_rng_state(state)
    return copy.deepcopy(model)


@cache  # made once, as it is asked for some thousand times
def _random_lm(family: str, attention: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    config = LM_CONFIGS[family]()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention_for(config, attention))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            else:  # biases and norms as trained models have them: neither all 0 nor all 1
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval(), torch.get_rng_state()


def tokenizer(*, pad: bool = True, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per character."""
    from tokenizers import decoders, processors

    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>", unk_token="<unk>", **named)


def save_lm(folder: Path, family: str = "llama", *, pad: bool = True) -> Path:
    """A folder with a tiny LM and its tokenizer."""
    random_lm(family).save_pretrained(folder)
    tokenizer(pad=pad, bos=family == "opt").save_pretrained(folder)
    return folder


def save_json_lm(folder: Path) -> Path:
    """A folder with a tiny LM whose tokenizer has the characters of JSON: those of the last, unused words are taken."""
    save_lm(folder)
    file = folder / "tokenizer.json"
    known = json.loads(file.read_text())
    for character, unused in zip('{}"_', "WXYZ", strict=True):
        known["model"]["vocab"][character] = known["model"]["vocab"].pop(unused)
    file.write_text(json.dumps(known))
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def save_chat_lm(folder: Path, family: str = "llama", template: str = CHAT_TEMPLATE) -> Path:
    """A folder with a tiny LM whose tokenizer has a chat template."""
    save_lm(folder, family)
    named = tokenizer(bos=family == "opt")
    named.chat_template = template
    named.save_pretrained(folder)
    return folder


def save_encoder(folder: Path, family: str = "dinov2") -> Path:
    """A folder with a tiny image encoder of 4 layers, 24 dimensions, 16 pixels."""
    torch.manual_seed(1)
    shape = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    model = (
        Dinov2Model(Dinov2Config(**shape, mlp_ratio=2))
        if family == "dinov2"
        else ViTModel(ViTConfig(**shape, intermediate_size=48), add_pooling_layer=False)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True}
        )
    )
    return folder


COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "gray": (128, 128, 128)}


def save_data(folder: Path, rows: int = 12, name: str = "train") -> Path:
    """A JSONL file of questions on the colour of plain pictures, with the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(rows):
        color = list(COLORS)[i % len(COLORS)]
        image = folder / f"{name}{i}.png"
        Image.new("RGB", (20, 18), tuple(max(0, c - i) for c in COLORS[color])).save(image)
        prompt = "color?" if i % 2 else "what color is this picture?"
        lines.append({"image": image.name, "prompt": prompt, "targets": [color], "answer_type": "color"})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def damaged(data: bytes, copies: int = 150) -> Iterator[bytes]:
    """The start of a file, cut off by chance, with three of its first 200 bytes changed."""
    random = np.random.default_rng(0)
    for _ in range(copies):
        broken = bytearray(data[: random.integers(1, len(data) + 1)])
        for position in random.integers(0, min(len(broken), 200), size=3):
            broken[position] = random.integers(256)
        yield bytes(broken)


def train_section(**changes: Any) -> dict[str, Any]:
    """The dwarfs' training: six steps, a checkpoint every second."""
    standard = {"steps": 6, "batch_size": 2, "lr": 1e-2, "prompt_lr": 1e-2, "warmup_steps": 0, "save_every": 2}
    return {**standard, **changes}


def recipe(lm: Path, encoder: Path, data: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A recipe for the dwarfs; `changes` replace whole sections."""
    task = {} if data is None else {"task": {"name": "jsonl", "train": str(data), "validation": str(data)}}
    return {
        "name": "dwarf",
        "lm": str(lm),
        "encoders": {"image": str(encoder)},
        "method": {"name": "epalm", "n_levels": 2},
        **task,
        "train": train_section(),
        "decode": {"max_new_tokens": 6},
        **changes,
    }
