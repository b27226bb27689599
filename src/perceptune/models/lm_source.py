"""What `lm.id` stands for: a model of transformers, or an adapter to be merged into one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceptune.config.schema import LMConfig
from perceptune.errors import UserError
from perceptune.lm.quantization import load_frozen
from perceptune.models.lora import cast_weights, merge_lora, require_lora, vocabulary_rows
from perceptune.models.model_folders import ADAPTER, describe_adapter, has_vocabulary
from perceptune.models.pretrained import DEFAULT_LM, load_tokenizer, read_config, resolve


@dataclass(frozen=True)
class LMSource:
    """An LM's model (`where`: a folder, an id or a published config) and the adapter on it."""

    config: LMConfig
    where: str
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
        config = read_config(self.where, self.config.revision)
        if self.adapter is not None and (rows := vocabulary_rows(self.adapter)):
            config.get_text_config().vocab_size = rows
        return config

    def load(self, kind: Any, dtype: torch.dtype, **given: Any) -> tuple[Any, str | None]:
        """Return the LM of transformers' class with all of its weights, and its fingerprint if those lack it.

        An adapter is merged in float32: rounding comes last.
        """
        if self.adapter is None:
            return load_frozen(kind, self.config, self.where, dtype, dtype=dtype, **given), None
        base = load_frozen(kind, self.config, self.where, torch.float32, dtype=torch.float32, **given)
        model, fingerprint = merge_lora(self.config.id, self.adapter, base)
        cast_weights(model, dtype)
        return model, fingerprint

    def load_tokenizer(self) -> Any:
        """Load the tokenizer: the adapter's if it has one, else the model's."""
        if self.adapter is not None and has_vocabulary(self.adapter):
            return load_tokenizer(self.config.id, str(self.adapter), None)
        return load_tokenizer(self.config.id, self.where, self.config.revision)


def find_lm(config: LMConfig, meta: bool = False) -> LMSource:
    """Return what a recipe's `lm` stands for. Raises `UserError` for an adapter without a usable base."""
    where = resolve(config.id, DEFAULT_LM, meta, is_lm=True)
    if not (Path(where) / ADAPTER).is_file():
        if config.base is not None:
            raise UserError(f"lm.base: `{config.id}` is not an adapter, so it has no base; leave the key out")
        return LMSource(config, where)
    adapter = Path(where)
    about = require_lora(config.id, adapter)
    named = config.base or about.get("base_model_name_or_path")
    if not named:
        raise UserError(f"`{config.id}` is {describe_adapter(about)}, and names no base: set `lm.base` to it")
    if config.quantization is not None:
        raise UserError(
            f"lm.quantization: `{config.id}` is an adapter, which is merged in float32; merge it into a folder of its "
            "own first, and name that"
        )
    try:
        base = resolve(named, DEFAULT_LM, meta)
    except UserError as error:
        raise UserError(f"lm `{config.id}`, an adapter: its base: {error}; set `lm.base` to where it is") from error
    return LMSource(config, base, adapter, named)
