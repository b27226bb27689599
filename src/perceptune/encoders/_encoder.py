"""The interface of all frozen encoders."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.encoders._tokens import TokenSelection
from perceptune.errors import UserError
from perceptune.types import Medium
from perceptune.utils.tensors import bytes_of


class Encoder(nn.Module, ABC):
    """A frozen encoder that returns the tokens of selected transformer blocks."""

    modality: ClassVar[str] = "image"  # modality of the media that `load` reads
    KEYS: ClassVar[frozenset[str]] = frozenset()  # supported keys of `EncoderConfig`, besides the common ones
    n_layers: int  # transformer blocks
    dim: int  # hidden size
    n_tokens: int  # T of `tokens="all"`, special tokens included
    n_special: int = 0  # of these, those in front of the patches, [CLS] first
    grid: tuple[int, int] | None = None  # rows and columns of the patches at one time; None = they are no such grid

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """Return the config of the tower from the checkpoint's config, with unused parts disabled."""
        return config

    @classmethod
    def read(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> Self:
        """Read the encoder in `source` with the config of `prepare`; see `load_encoder`. Leaves override it."""
        raise NotImplementedError(f"{cls.__name__} is made from another encoder")

    @abstractmethod
    def load(self, medium: Medium, name: str | None = None, seed: bytes | None = None) -> Tensor:
        """Load one medium as an input of `forward` without the batch axis: float32 on the CPU. Thread-safe.

        `name` identifies it in messages; `seed` selects one of its augmented views, the same for the same seed,
        instead of the plain medium. Raises `MediaError`.
        """

    @abstractmethod
    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """Return (B, n_levels, T, dim) float32: the output tokens of block `level` (0-based), after the final norm.

        T as `count_tokens` says. Raises `UserError` for a level outside the encoder.
        """

    def count_tokens(self, tokens: TokenSelection) -> int:
        """Return the number of tokens T of a selection. Raises `UserError` for one that this encoder does not have."""
        if tokens == "all" and self.n_tokens > 1:
            return self.n_tokens
        if tokens != "cls":
            raise UserError(f"`tokens: {tokens}`: it gives one token a level; use `cls`")
        return 1

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """Return the preprocessing done by `load`, as JSON-serialisable settings."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the part of the config that, with the weights, determines the features."""

    def augmentation(self) -> dict[str, Any]:
        """Return the augmentation of views, as JSON-serialisable settings."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) of config, preprocessing and weights, in the dtype in which they were loaded."""
        description = {"config": self.settings(), "preprocessing": self.preprocessing()}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        # Without the weights' names, because transformers renames weights between releases, and runs must stay valid.
        for one in sorted(hashlib.sha256(bytes_of(tensor)).digest() for tensor in self.state_dict().values()):
            digest.update(one)
        return digest.hexdigest()

    def copy_shape(self, inner: "Encoder") -> None:
        """Take over the shape of an encoder that does the work."""
        self.n_layers, self.dim, self.n_tokens = inner.n_layers, inner.dim, inner.n_tokens
        self.n_special, self.grid = inner.n_special, inner.grid

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode: features are cached, and dropout would only add noise to them."""
        return super().train(False)

    def check_levels(self, levels: Sequence[int]) -> None:
        """Raise `UserError` for a block that the encoder does not have."""
        for level in levels:
            if not 0 <= level < self.n_layers:
                raise UserError(f"the encoder has no level {level}: its blocks are 0 to {self.n_layers - 1}")
        if not levels:
            raise UserError("no encoder level was chosen")
