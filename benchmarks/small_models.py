"""Small models with random weights, and their data: what the comparisons of two commits run.

Made by transformers alone, so that every commit reads the same folder.
"""

import json
import string
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROWS = 32  # of each data file
QUESTIONS = ("what is this?", "which of these words is it?")  # of two lengths, so that batches have padding
WORDS = ("red", "green", "dark blue", "gray")
_CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", *string.ascii_letters, *string.digits, *" ?.:,-<>/"]
_PAD, _START, _END = range(3)
_VOCABULARY = 1000  # the rest are words: whatever is generated can be read
_TEXT: dict[str, Any] = {
    "vocab_size": _VOCABULARY, "pad_token_id": _PAD, "bos_token_id": _START, "eos_token_id": _END
}  # fmt: skip
_SHAPE: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256
}  # fmt: skip
_SIZE: dict[str, Any] = {"image_size": 48, "patch_size": 8}
_PIXELS: dict[str, Any] = {
    "size": {"height": 48, "width": 48}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True
}  # fmt: skip
_HEARS = {"num_mel_bins": 32, "max_length": 64, "sampling_rate": 16_000, "mean": -4.0, "std": 4.5}


def make(folder: Path) -> Path:
    """Saves models and data; returns the folder."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    lm: Any = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **_TEXT, hidden_size=192, intermediate_size=384, num_hidden_layers=8, num_attention_heads=6,
            num_key_value_heads=3, max_position_embeddings=512,
        )
    )  # fmt: skip
    _save(lm, folder / "lm", head=lm.lm_head)
    _tokenizer().save_pretrained(folder / "lm")
    _save(transformers.ViTModel(transformers.ViTConfig(**_SHAPE, **_SIZE), add_pooling_layer=False), folder / "image")
    hears = {key: _HEARS[key] for key in ("num_mel_bins", "max_length")}
    ast: Any = transformers.ASTConfig(**_SHAPE, **hears, patch_size=16, frequency_stride=10, time_stride=10)
    _save(transformers.ASTModel(ast), folder / "audio", _HEARS)
    clips: Any = transformers.VideoMAEConfig(**_SHAPE, **_SIZE, num_frames=4, use_mean_pooling=False)
    _save(transformers.VideoMAEModel(clips), folder / "video")
    _save_blip(folder / "blip")
    for modality, save in (("image", _save_image), ("audio", _save_audio), ("video", _save_video)):
        _save_data(folder / "data", modality, save)
    return folder


def _save_blip(folder: Path) -> None:
    text: Any = transformers.T5Config
    vision: Any = {**_SHAPE, **_SIZE}
    qformer = {**_SHAPE, "vocab_size": _VOCABULARY, "max_position_embeddings": 128, "cross_attention_frequency": 2,
               "encoder_hidden_size": 128}  # fmt: skip
    t5 = text(
        **_TEXT, d_model=128, d_kv=32, d_ff=256, num_layers=6, num_heads=4, decoder_start_token_id=_PAD,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    config = transformers.InstructBlipConfig(
        vision_config=vision, qformer_config=qformer, text_config=t5.to_dict(), num_query_tokens=8,
        image_token_index=_VOCABULARY - 1,
    )  # fmt: skip
    blip: Any = transformers.InstructBlipForConditionalGeneration(config)
    _save(blip, folder, head=blip.language_model.lm_head)
    _tokenizer().save_pretrained(folder)
    _tokenizer().save_pretrained(folder / "qformer_tokenizer")


@torch.no_grad()
def _save(model: Any, folder: Path, preprocessing: Any = None, head: Any = None) -> None:
    """Saves a model whose outputs differ clearly between inputs, and whose LM never chooses the end token."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    if head is not None:
        head.weight[_END] = 0
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing or _PIXELS), encoding="utf-8")


def _tokenizer() -> Any:
    """One token per character; words beside them that no text is split into."""
    tokens = [*_CHARACTERS, *(f" word{number}" for number in range(len(_CHARACTERS), _VOCABULARY))]
    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _save_data(folder: Path, modality: str, save: Any) -> None:
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(ROWS):
        name = save(folder / f"{number}", np.random.default_rng(number)).name
        rows.append({modality: name, "prompt": QUESTIONS[number % 2], "targets": [WORDS[number % len(WORDS)]]})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{modality}.jsonl").write_text(text, encoding="utf-8")


def _save_image(path: Path, random: np.random.Generator) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(random.integers(256, size=(48, 64, 3), dtype=np.uint8)).save(path)
    return path


def _save_audio(path: Path, random: np.random.Generator) -> Path:
    path = path.with_suffix(".wav")
    soundfile.write(path, random.normal(0, 0.1, 8_000), 16_000)
    return path


def _save_video(path: Path, random: np.random.Generator) -> Path:
    path = path.with_suffix(".mp4")
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(8):
            frame = random.integers(256, size=(48, 64, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path
