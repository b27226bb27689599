"""What every frozen encoder offers."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.errors import UserError
from perceptune.types import Medium
from perceptune.utils.tensors import bytes_of

TokenSelection = Literal["cls", "all"]


class Encoder(nn.Module, ABC):
    """A frozen encoder that gives the tokens of chosen transformer blocks."""

    modality: ClassVar[str] = "image"  # what `load` takes
    KEYS: ClassVar[frozenset[str]] = frozenset()  # keys of `EncoderConfig` that it heeds beside those all heed
    n_layers: int  # transformer blocks
    dim: int  # hidden size
    n_tokens: int  # T of `tokens="all"`, special tokens included

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """From the checkpoint's config, that of the tower in use, with parts switched off that are never used."""
        return config

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """The encoder in a folder or repository, given `prepare`'s config; see `load_encoder`. For leaves to define."""
        raise NotImplementedError(f"{cls.__name__} is made from another encoder")

    @abstractmethod
    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """One medium, as `forward` takes it but for the batch axis: float32 on the CPU. Thread-safe.

        `name` stands for it in messages; `seed` chooses one of its augmented views, always the same for the same
        seed, instead of the plain medium. Raises `MediaError`.
        """

    @abstractmethod
    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """(B, n_levels, T, dim) float32: the tokens that leave block `level` (0-based), after the final norm.

        T = 1 for `cls`, `n_tokens` for `all`. Raises `UserError` for a level outside the encoder.
        """

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What `load` does, as JSON-able settings."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The part of the config that, with the weights, fixes what is computed."""

    def augmentation(self) -> dict[str, Any]:
        """What augmented views may change, as JSON-able settings."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of config, weights in the dtype they are held in, and preprocessing."""
        description = {"config": self.settings(), "preprocessing": self.preprocessing()}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        # Without the weights' names, which transformers changes now and then: a run must outlive that.
        for one in sorted(hashlib.sha256(bytes_of(tensor)).digest() for tensor in self.state_dict().values()):
            digest.update(one)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: its features are cached, and dropout would only add noise to them."""
        return super().train(False)

    def check_levels(self, levels: Sequence[int]) -> None:
        """Raises `UserError` for a block the encoder does not have."""
        for level in levels:
            if not 0 <= level < self.n_layers:
                raise UserError(f"the encoder has no level {level}: its blocks are 0 to {self.n_layers - 1}")
        if not levels:
            raise UserError("no encoder level was chosen")
