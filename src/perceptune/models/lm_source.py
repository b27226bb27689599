"""What `lm.id` stands for: a model of transformers, a GGUF file, or an adapter to be merged into one of these."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceptune.config.schema import LMConfig
from perceptune.errors import UserError
from perceptune.lm.quantization import load_frozen
from perceptune.models.gguf_files import load_gguf, load_gguf_tokenizer, read_gguf_config, require_gguf
from perceptune.models.lora import cast_weights, merge_lora, require_lora, vocabulary_rows
from perceptune.models.model_folders import ADAPTER, TOKENIZER, describe_adapter, gguf_in, has_vocabulary
from perceptune.models.pretrained import DEFAULT_LM, load_tokenizer, loading, read_config, resolve


@dataclass(frozen=True)
class LMSource:
    """An LM's model (`where`: a folder, a GGUF file, an id or a published config) and the adapter on it."""

    config: LMConfig
    where: str
    is_gguf: bool = False
    adapter: Path | None = None
    base: str = ""  # the adapter's base as it was named

    @property
    def name(self) -> str:
        """Name of the model whose files are read."""
        return self.base or self.config.id

    @property
    def title(self) -> str:
        """What is loaded, for messages."""
        base = f": its base `{self.base}` (`lm.base` names another)" if self.base else ""
        return f"lm `{self.config.id}`{base}"

    def read_config(self) -> Any:
        """Read the config of transformers."""
        config = read_gguf_config(Path(self.where)) if self.is_gguf else read_config(self.where, self.config.revision)
        if self.adapter is not None and (rows := vocabulary_rows(self.adapter)):
            config.get_text_config().vocab_size = rows
        return config

    def load(self, kind: Any, dtype: torch.dtype, attention: str) -> tuple[Any, str | None]:
        """Return the LM of transformers' class with all of its weights, and its fingerprint if those lack it.

        An adapter is merged in float32: rounding comes last.
        """
        if self.adapter is None:
            return self._load_model(kind, dtype, attention), None
        base = self._load_model(kind, torch.float32, attention)
        model, fingerprint = merge_lora(self.config.id, self.adapter, base)
        cast_weights(model, dtype)
        return model, fingerprint

    def _load_model(self, kind: Any, dtype: torch.dtype, attention: str) -> Any:
        if self.is_gguf:
            return load_gguf(Path(self.where), dtype, attention)
        return load_frozen(kind, self.config, self.where, dtype, attn_implementation=attention, dtype=dtype)

    def load_tokenizer(self) -> Any:
        """Load the tokenizer: the adapter's if it has one, else the model's; for a GGUF file first one beside it."""
        if self.adapter is not None and has_vocabulary(self.adapter):
            return load_tokenizer(self.config.id, str(self.adapter), None)
        file = Path(self.where)
        if not self.is_gguf:
            return load_tokenizer(self.config.id, self.where, self.config.revision)
        if (file.parent / TOKENIZER).is_file():
            return load_tokenizer(self.config.id, str(file.parent), None)
        with loading(f"tokenizer of {self.title}", self.name):
            return load_gguf_tokenizer(file)


def find_lm(config: LMConfig, meta: bool = False) -> LMSource:
    """Return what a recipe's `lm` stands for. Raises `UserError` for an adapter without a usable base."""
    where = resolve(config.id, DEFAULT_LM, meta, is_lm=True)
    if not (Path(where) / ADAPTER).is_file():
        if config.base is not None:
            raise UserError(f"lm.base: `{config.id}` is not an adapter, so it has no base; leave the key out")
        return LMSource(config, *_model_at(config, config.id, where))
    adapter = Path(where)
    about = require_lora(config.id, adapter)
    named = config.base or about.get("base_model_name_or_path")
    if not named:
        raise UserError(f"`{config.id}` is {describe_adapter(about)}, and names no base: set `lm.base` to it")
    _require_unquantized(config, "an adapter, which is merged")
    try:
        base = resolve(named, DEFAULT_LM, meta, is_lm=True)
        if (Path(base) / ADAPTER).is_file():
            raise UserError(f"`{named}` is an adapter, too: merge it into a model")
        return LMSource(config, *_model_at(config, named, base), adapter, named)
    except UserError as error:
        raise UserError(f"lm `{config.id}`, an adapter: its base: {error}; set `lm.base` to where it is") from error


def _model_at(config: LMConfig, name: str, where: str) -> tuple[str, bool]:
    """Return the location of the model at `where`, and whether it is a GGUF file, the only one of its folder."""
    place, found = Path(where), gguf_in(Path(where))
    if len(found) > 1:
        raise UserError(f"`{name}` holds {len(found)} GGUF files: name one of {', '.join(found)}")
    file = place / found[0] if found else place
    if file.suffix.lower() != ".gguf":
        return where, False
    require_gguf(name, file)
    _require_unquantized(config, "a GGUF file, which is unpacked")
    return str(file), True


def _require_unquantized(config: LMConfig, what: str) -> None:
    if config.quantization is not None:
        raise UserError(
            f"lm.quantization: `{config.id}` is {what} in float32; save it to a folder as transformers does first, "
            "and name that"
        )
