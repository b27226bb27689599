"""Tiny random models of real architectures, and a few coloured images: enough to test a device."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from PIL import Image

COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "gray": (128, 128, 128)}
QUESTIONS = ("color?", "what color is this picture?")  # of two lengths, so that batches have padding
_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", *string.ascii_letters, *string.digits, *" ?.:,-<>/"]
_VOCABULARY = len(_TOKENS) + 4
_IMAGE_TOKEN = _VOCABULARY - 1
_TEXT: dict[str, Any] = {"vocab_size": _VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_PIXELS = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True}


def make_models(folder: Path, rows: int = 8) -> Path:
    """Save `lm` (a Llama), `vit`, `blip` (an InstructBLIP with a T5) and `data/train.jsonl`; return the folder."""
    from transformers import AutoModelForCausalLM, InstructBlipForConditionalGeneration, ViTConfig, ViTModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _spread(AutoModelForCausalLM.from_config(_llama())).save_pretrained(folder / "lm")
        _spread(ViTModel(ViTConfig(**_VISION), add_pooling_layer=False)).save_pretrained(folder / "vit")
        _spread(InstructBlipForConditionalGeneration(_blip()), 0.1).save_pretrained(folder / "blip")
    for place in ("lm", "blip", "blip/qformer_tokenizer"):
        _tokenizer().save_pretrained(folder / place)
    for name in ("vit", "blip"):
        (folder / name / "preprocessor_config.json").write_text(json.dumps(_PIXELS), encoding="utf-8")
    save_images(folder / "data", rows)
    return folder


def recipe(folder: Path, backbone: str, run: Path, **train: Any) -> dict[str, Any]:
    """Return a recipe for the models in a folder: `splice` or `instructblip`."""
    data = str(folder / "data/train.jsonl")
    common: dict[str, Any] = {
        "name": f"tiny-{backbone}", "backbone": backbone, "cache": {"dir": str(run.parent / "cache")},
        "task": {"name": "jsonl", "train": data, "validation": data}, "decode": {"max_new_tokens": 4},
        "train": {"steps": 6, "batch_size": 4, "lr": 1e-2, "prompt_lr": 1e-2, "warmup_steps": 0, "log_every": 1,
                  "precision": "float32", **train},
        "eval": {"batch_size": 4},
    }  # fmt: skip
    parts: dict[str, dict[str, Any]] = {
        "splice": {"lm": str(folder / "lm"), "encoders": {"image": str(folder / "vit")},
                   "method": {"name": "epalm", "n_levels": 2}},
        "instructblip": {"lm": str(folder / "blip"),
                         "method": {"name": "petal", "dma": {"r": 4}, "instructions": ["is this"]}},
    }  # fmt: skip
    return common | parts[backbone]


def save_images(folder: Path, rows: int) -> None:
    """Save images of one colour each, with questions about them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(rows):
        color = list(COLORS)[number % len(COLORS)]
        name = f"image{number}.png"
        Image.new("RGB", (20, 18), COLORS[color]).save(folder / name)
        lines.append({"image": name, "prompt": QUESTIONS[number % 2], "targets": [color]})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _blip() -> Any:
    from transformers import InstructBlipConfig, T5Config

    kind: Any = T5Config
    text = kind(
        **_TEXT, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    qformer = {"vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
               "intermediate_size": 64, "max_position_embeddings": 64, "cross_attention_frequency": 2,
               "encoder_hidden_size": _VISION["hidden_size"]}  # fmt: skip
    return InstructBlipConfig(
        vision_config=_VISION, qformer_config=qformer, text_config=text.to_dict(), num_query_tokens=3,
        image_token_index=_IMAGE_TOKEN,
    )  # fmt: skip


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **_TEXT, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip


def _tokenizer() -> Any:
    """Return a tokenizer with one token per character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(_TOKENS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _TOKENS, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@torch.no_grad()
def _spread(model: Any, std: float = 0.2) -> Any:
    """Make weights large enough for outputs to differ clearly between inputs."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * (std if parameter.dim() > 1 else 0.05))
    return model.eval()
