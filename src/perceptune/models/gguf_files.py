"""GGUF files of llama.cpp as LMs: unpacked to plain weights by transformers, with the tokenizer they describe."""

import contextlib
import importlib.util
import io
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from perceptune.errors import UserError
from perceptune.utils.transformers_loading import quiet_loading, require_all_weights

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
# Rules of llama.cpp by which text is cut before byte-level BPE. transformers' converter knows some, and takes GPT-2's
# for all others; these cut out each digit first.
_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_GPT2 = {None, "default", "gpt2", "gpt-2", "phi-2", "jais", "mpt", "olmo", "trillion", "mellum", "modern-bert"}


def require_gguf(name: str, file: Path) -> None:
    """Raise `UserError` without the package that reads GGUF, and for a file of another kind or a part of one."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f'`{name}` is a GGUF file, which the package gguf reads: pip install "perceptune[assets]"')
    if _SHARD.search(file.name):
        raise UserError(
            f"`{name}` is split into several GGUF files: join them by llama.cpp's `llama-gguf-split --merge "
            f"{file.name} model.gguf`, and name the result"
        )
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"`{name}`: {file.name} is not a GGUF file, whatever its name says; download it again")


def read_gguf_config(file: Path) -> Any:
    """Read the config of transformers from a GGUF file, without traces of the format."""
    from transformers import AutoConfig

    with _reading(file):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    fields = config.to_dict()
    for leftover in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        fields.pop(leftover, None)
    return type(config)(**fields)


def load_gguf(file: Path, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
    """Load a causal LM in GGUF with weights unpacked to `dtype`. Raises `UserError` for incomplete weights."""
    import transformers

    given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "attn_implementation": attention}
    if hasattr(transformers, "GgufConfig"):  # without it, older versions unpack as well
        given["quantization_config"] = transformers.GgufConfig(dequantize=True)
    kind: Any = transformers.AutoModelForCausalLM
    with _reading(file):
        loaded, info = kind.from_pretrained(file.parent, dtype=dtype, output_loading_info=True, **given)
    require_all_weights(f"`{file}`", info)
    # What a GGUF quantizer loaded can neither be saved nor moved, so the weights move into a plain model; `meta` and
    # `assign` spare a copy. Strict: weights that a later loader leaves packed would raise.
    with torch.device("meta"):
        model = kind.from_config(read_gguf_config(file), attn_implementation=attention)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    for name, buffer in loaded.named_buffers():  # also those that are in no state dict, such as rotary frequencies
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    return model


def load_gguf_tokenizer(file: Path, longest: int | None = None) -> Any:
    """Load the tokenizer that a GGUF file describes; `longest` is the LM's number of positions."""
    from transformers import AutoTokenizer

    with _reading(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    tokenizer.init_kwargs.pop("local_files_only", None)  # an argument of the call, saved with the rest
    _restore_cutting(tokenizer, file)
    if longest is not None:
        tokenizer.model_max_length = longest
    return tokenizer


def save_gguf(file: Path, out: Path) -> None:
    """Convert a causal LM in GGUF to a folder with float32 weights, configuration and tokenizer."""
    # float32: of SmolLM2's 134.5 M weights, bfloat16 would change 106.6 M and float16 55.9 M.
    model = load_gguf(file)
    with quiet_loading():
        model.save_pretrained(out)
        load_gguf_tokenizer(file, model.config.max_position_embeddings).save_pretrained(out)


def _restore_cutting(tokenizer: Any, file: Path) -> None:
    """Restore how text is cut before BPE where transformers does not; print a note for a rule unknown to both."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    cut = tokenizer.backend_tokenizer.pre_tokenizer
    if not isinstance(cut, pre_tokenizers.ByteLevel):  # not byte-level, or set by transformers
        return
    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    rule = None if field is None else field.contents()
    if rule in _DIGITS:
        # Without that, spaces and newlines before a digit come out differently ("\n\n2" as three tokens, not two).
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif rule not in _GPT2:
        print(
            f"note: {file.name} cuts text by the rule `{rule}`, unknown here, so that GPT-2's is used; for its "
            "exact tokens put the LM's own tokenizer.json beside the file", file=sys.stderr,
        )  # fmt: skip


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Hide the reports of loading and convert errors of a file that is cut off.

    The GGUF reader's bar is tqdm's own, out of reach of transformers' switch.
    """
    try:
        with quiet_loading(), contextlib.redirect_stderr(io.StringIO()):
            yield
    except (struct.error, IndexError) as error:
        raise UserError(f"`{file}` is damaged or cut off ({error}): download it again") from error
