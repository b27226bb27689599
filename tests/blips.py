"""Tiny random InstructBLIP and BLIP-2 models with their tokenizers, as transformers' processors save them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

import support

N_QUERIES, WIDTH, LAYERS = 3, 16, 4
IMAGE_TOKEN = support.SIZE - 1
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "question", "answer", "color", "what", "is", "this", "picture", ":", "?"]
KINDS = ("t5", "llama", "blip2-opt", "blip2-t5")
_VISION: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8, "initializer_range": 0.02,
}  # fmt: skip
_QFORMER: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 24, "cross_attention_frequency": 2,
}  # fmt: skip


def _lm(kind: str) -> Any:
    if kind.endswith("t5"):
        return T5Config(
            vocab_size=support.SIZE, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )  # fmt: skip
    if kind == "blip2-opt":
        return OPTConfig(**support._BASE, ffn_dim=48, max_position_embeddings=128)
    return LlamaConfig(**support._BASE, **support._KV, max_position_embeddings=128)


def random_blip(kind: str, positions: int = 24) -> Any:
    """Far from any neutral start, so that every part acts; its Q-Former reads so many tokens at most."""
    torch.manual_seed(0)
    qformer = {**_QFORMER, "max_position_embeddings": positions}
    given: dict[str, Any] = {"num_query_tokens": N_QUERIES, "image_token_index": IMAGE_TOKEN}
    if kind.startswith("blip2"):
        config = Blip2Config(
            vision_config=Blip2VisionConfig(**_VISION), qformer_config=Blip2QFormerConfig(**qformer),
            text_config=_lm(kind), **given,
        )  # fmt: skip
        model: Any = Blip2ForConditionalGeneration(config)
    else:
        config = InstructBlipConfig(
            vision_config=InstructBlipVisionConfig(**_VISION), qformer_config=InstructBlipQFormerConfig(**qformer),
            text_config=_lm(kind), **given,
        )  # fmt: skip
        model = InstructBlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.05))
    return model.eval()


def qformer_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the dwarfs' questions in lower case, between [CLS] and [SEP]."""
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save_blip(folder: Path, kind: str) -> Path:
    """A folder with model, tokenizer, preprocessing and, of an InstructBLIP, the Q-Former's tokenizer."""
    files, state = _files(kind)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    torch.set_rng_state(state)
    return folder


@cache  # twenty test files ask for them
def _files(kind: str) -> tuple[dict[str, bytes], torch.Tensor]:
    """By their names; random numbers go on behind the model's."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        random_blip(kind).save_pretrained(folder)
        state = torch.get_rng_state()
        support.tokenizer(bos=kind == "llama").save_pretrained(folder)
        if not kind.startswith("blip2"):
            qformer_tokenizer().save_pretrained(folder / "qformer_tokenizer")
        size = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(size))
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}, state


def save_all(root: Path, kinds: Sequence[str] = KINDS) -> Path:
    """A model of each kind, by its name, and `data`."""
    for kind in kinds:
        save_blip(root / kind, kind)
    support.save_data(root / "data")
    return root


def recipe(blip: Path, data: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A recipe for a tiny model; `changes` replace whole sections."""
    task = {} if data is None else {"task": {"name": "jsonl", "train": str(data), "validation": str(data)}}
    return {
        "name": "blip", "backbone": "instructblip", "lm": str(blip), "method": "full", **task,
        "train": support.train_section(), "decode": {"max_new_tokens": 6}, **changes,
    }  # fmt: skip
