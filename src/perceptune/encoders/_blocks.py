"""A shared implementation for transformers' encoders that are a stack of equal blocks."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from perceptune.config.schema import EncoderConfig
from perceptune.encoders._checkpoints import build_tower, settings_of
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._tokens import TokenSelection, grid_means, grid_side, require_side
from perceptune.errors import UserError


class BlockParts(NamedTuple):
    """Names of the parts of a pre-norm block whose attention has `q_proj`, `k_proj` and `v_proj`."""

    norms: tuple[str, str]
    attention: str
    out: str  # the attention's output projection
    scales: tuple[str, ...] = ()  # layer scales of the two branches, if there are any

    def first_token(self, block: Any, hidden: Tensor) -> Tensor:
        """Compute the block's output for token 0 only, up to rounding: (B, T, dim) -> (B, 1, dim).

        Token 0 attends to every token, so keys and values are computed for all of them; the rest only for token 0.
        """
        attention = getattr(block, self.attention)
        normed = getattr(block, self.norms[0])(hidden)
        inputs = {attention.q_proj: normed[:, :1], attention.k_proj: normed, attention.v_proj: normed}
        query, key, value = (
            project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for project, x in inputs.items()
        )
        seen = nn.functional.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, head_dim)
        seen = getattr(attention, self.out)(seen.transpose(1, 2).flatten(2))
        first, second = [getattr(block, name) for name in self.scales] or [nn.Identity(), nn.Identity()]
        hidden = hidden[:, :1] + first(seen)
        return hidden + second(block.mlp(getattr(block, self.norms[1])(hidden)))


class BlockEncoder(Encoder):
    """A transformer whose levels are its blocks. A leaf defines the names of its parts."""

    MODELS: ClassVar[Mapping[str, str]]  # model type -> transformers' class of the tower
    BUILD: ClassVar[Mapping[str, Any]] = {}  # arguments of that class in addition to its config
    RENAMED: ClassVar[Mapping[str, str]] = {}  # patterns in the names of a checkpoint's weights -> replacements
    BLOCKS: ClassVar[str]  # dotted path of the list of blocks
    NORM: ClassVar[str]  # dotted path of the final norm
    UNUSED: ClassVar[tuple[str, ...]]  # prefixes of weights that a checkpoint may contain and the tower ignores
    POOL: ClassVar[Literal["first", "mean"]] = "first"  # token(s) that `cls` returns
    uses_norm: bool = True  # whether the final norm is applied to every level
    PARTS: ClassVar[BlockParts | None] = None  # None: the highest block is run for all tokens, even for `cls`

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower: Any = tower
        config: Any = tower.config
        self.n_layers, self.dim = len(self.blocks), int(config.hidden_size)
        self.requires_grad_(False).eval()

    @property
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks; a property, because an attribute would add their weights to the state dict twice."""
        return self.tower.get_submodule(self.BLOCKS)

    @classmethod
    def tower_of(cls, source: str, config: Any, options: EncoderConfig, meta: bool) -> nn.Module:
        """Build the tower with the weights in `source`; see `build_tower`."""
        return build_tower(
            source, config, cls.MODELS[config.model_type], revision=options.revision,
            dtype=getattr(torch, options.dtype), meta=meta, unused=cls.UNUSED, arguments=cls.BUILD,
            renamed=cls.RENAMED,
        )  # fmt: skip

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Embed a batch of `load`'s outputs: (B, ...) -> the input of block 0 (B, T, dim)."""

    def pool(self, hidden: Tensor, x: Tensor) -> Tensor:
        """Return the mean over tokens, (B, T, dim) -> (B, 1, dim), for `POOL` = `mean`; `x` is the encoder's input."""
        return hidden.mean(dim=1, keepdim=True)

    def forward(self, x: Tensor, levels: Sequence[int], tokens: TokenSelection = "cls") -> Tensor:
        """Return (B, n_levels, T, dim) float32; blocks above the highest level are not run."""
        if not levels or not all(0 <= level < self.n_layers for level in levels):
            self.check_levels(levels)  # raises the error
        hidden = self.embed(x.to(self.tower.dtype))  # (B, T, dim)
        kept: dict[int, Tensor] = {}
        for level, block in enumerate(islice(self.blocks, max(levels) + 1)):
            if level == max(levels) and tokens == "cls" and self.POOL == "first" and self.PARTS is not None:
                hidden = self.PARTS.first_token(block, hidden)
            else:
                hidden = self.run(block, hidden)
            if level in levels:
                kept[level] = self._pick(hidden, tokens, x)
        return torch.stack([kept[level] for level in levels], dim=1).float()

    def count_tokens(self, tokens: TokenSelection) -> int:
        """Return the number of tokens T of a selection. Raises `UserError` for one that this encoder does not have."""
        if tokens == "cls-mean":
            if not self.n_special:
                raise UserError("`tokens: cls-mean`: it has no [CLS], and its `cls` is the mean already; use `cls`")
            return 2
        side = grid_side(tokens)
        if side is None:
            return super().count_tokens(tokens)
        if self.grid is None:
            raise UserError(f"`tokens: {tokens}`: its tokens are not a grid of patches; use `cls` or `all`")
        require_side(side, self.grid)
        return side * side + bool(self.n_special)

    def mean_over_time(self, patches: Tensor) -> Tensor:
        """Average the patches of a video over time, (B, P, dim) -> (B, rows * columns, dim); here: return them."""
        return patches

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run one block: (B, T, dim) -> (B, T, dim)."""
        return block(hidden, None)

    def settings(self) -> dict[str, Any]:
        """Return the config entries that differ from the class's defaults."""
        return settings_of(self.tower.config) | ({} if self.uses_norm else {"final_norm": False})

    @property
    def norm(self) -> nn.Module:
        """Final norm; a property for the same reason as `blocks`."""
        return self.tower.get_submodule(self.NORM)

    def _pick(self, hidden: Tensor, tokens: TokenSelection, x: Tensor) -> Tensor:
        norm = self.norm if self.uses_norm else nn.Identity()
        if tokens == "cls":
            return self.pool(norm(hidden), x) if self.POOL == "mean" else norm(hidden[:, :1])
        hidden = norm(hidden)
        return hidden if tokens == "all" else self._means(hidden.float(), tokens)

    def _means(self, hidden: Tensor, tokens: TokenSelection) -> Tensor:
        """Return [CLS], if there is one, and the mean of all patches or the means of a grid of them."""
        self.count_tokens(tokens)  # raises the error
        first, patches = hidden[:, : min(1, self.n_special)], hidden[:, self.n_special :]
        side = grid_side(tokens)
        if side is None or self.grid is None:
            means = patches.mean(1, keepdim=True)
        else:
            means = grid_means(self.mean_over_time(patches), self.grid, side)
        return torch.cat([first, means], 1)
