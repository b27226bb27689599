"""Mappers of an encoder's tokens to states of the LM: (B, T, dim) -> (B, N, hidden), each row by itself.

Query pooling, the resamplers that keep the order of the patches and random tokens are those of DePALM (Vallaeys et
al., "Improved Baselines for Data-efficient Perceptual Augmentation of LLMs", arXiv 2403.13499).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.encoders.base import grid_means
from perceptune.errors import UserError
from perceptune.methods.slots._token_layout import TokenLayout

QUERY_STD = 0.02  # of attention pooling: near the mean of all tokens, and yet different from one another


class QueryPooling(nn.Module):
    """DePALM's QPMapper: trained queries behind the tokens, through transformer blocks; the queries' outputs are kept.

    Without `width` the blocks are as wide as the tokens, and there is no map in front of them.
    """

    def __init__(self, options: Any, dim: int, hidden: int) -> None:
        super().__init__()
        self.enter, width = _enter(options, dim)
        self.queries = nn.Parameter(torch.randn(options.mapper_queries, width))
        self.blocks = _blocks(options, width)
        self.leave = nn.Linear(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.leave(_query(self.enter(tokens), self.queries, self.blocks))
        return output


class TokenBlocks(nn.Module):
    """All tokens through transformer blocks between two linear maps, as DePALM's cross-attention has them.

    Without `width` the blocks are as wide as the tokens, and there is no map in front of them.
    """

    def __init__(self, options: Any, dim: int, hidden: int) -> None:
        super().__init__()
        self.enter, width = _enter(options, dim)
        self.blocks = _blocks(options, width)
        self.leave = nn.Linear(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.leave(_through(self.blocks, self.enter(tokens)))
        return output


class AttentionPooling(nn.Module):
    """Means of the tokens, weighted by their likeness to trained queries, and one linear map."""

    def __init__(self, queries: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, dim) * QUERY_STD)
        self.leave = nn.Linear(dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = (self.queries @ tokens.transpose(1, 2) / tokens.shape[2] ** 0.5).softmax(-1)  # (B, N, T)
        output: Tensor = self.leave(weights @ tokens)
        return output


class GridMeans(nn.Module):
    """[CLS] and the means of the patches in the cells of a grid, each through one linear map."""

    def __init__(self, side: int, layout: TokenLayout, dim: int, hidden: int) -> None:
        super().__init__()
        self.side, self.layout, self.grid = side, layout, layout.patches("grid")
        if side > min(self.grid):
            raise UserError(
                f"method.mapper_grid is {side}, but the {layout.modality} encoder has only {self.grid[0]} x "
                f"{self.grid[1]} patches"
            )
        self.leave = nn.Linear(dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        means = grid_means(tokens[:, self.layout.n_special :], self.grid, self.side)
        output: Tensor = self.leave(torch.cat([tokens[:, : self.layout.n_kept], means], 1))
        return output


class SpaceToDepth(nn.Module):
    """The patches of each square group behind one another as one token ("pixel shuffle"); without special tokens."""

    def __init__(self, options: Any, layout: TokenLayout, dim: int, hidden: int) -> None:
        super().__init__()
        self.side, self.layout = options.mapper_group, layout
        layout.groups("space-to-depth", self.side)
        rank, joined = options.mapper_rank, dim * self.side**2
        parts = (joined, hidden) if rank is None else (joined, rank, hidden)
        self.maps = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(parts)))

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.maps(_grouped(tokens, self.layout, self.side).flatten(2))
        return output


class GroupMean(nn.Module):
    """The mean of a group's tokens, (B, groups, tokens, width) -> (B, groups, width)."""

    def forward(self, groups: Tensor) -> Tensor:
        return groups.mean(2)


class GroupLinear(nn.Module):
    """A linear map of a group's tokens behind one another."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(size * width, width)

    def forward(self, groups: Tensor) -> Tensor:
        output: Tensor = self.map(groups.flatten(2))
        return output


class GroupQuery(nn.Module):
    """Query pooling of each group with one query."""

    def __init__(self, options: Any, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.blocks = _blocks(options, width)

    def forward(self, groups: Tensor) -> Tensor:
        return _query(groups.flatten(0, 1), self.query, self.blocks).reshape(*groups.shape[:2], -1)


class Resampler(nn.Module):
    """DePALM's resamplers: one token of each square group of patches, in their order, behind [CLS].

    A linear map to `width`, the pooling of each group, an RMS norm, and a linear map to the LM.
    """

    def __init__(
        self, options: Any, layout: TokenLayout, dim: int, hidden: int, pool: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.side, self.layout = options.mapper_group, layout
        layout.groups(options.mapper, self.side)
        width = options.mapper_width or hidden
        self.enter = nn.Linear(dim, width)
        self.pool = pool(width)
        self.norm = nn.RMSNorm(width, eps=options.mapper_eps)
        self.leave = nn.Linear(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        entered = self.enter(tokens)
        pooled = self.pool(_grouped(entered, self.layout, self.side))
        output: Tensor = self.leave(self.norm(torch.cat([entered[:, : self.layout.n_kept], pooled], 1)))
        return output


def _enter(options: Any, dim: int) -> tuple[nn.Module, int]:
    """Return the map in front of transformer blocks, none if they are as wide as the tokens, and their width."""
    width = options.mapper_width
    return (nn.Identity(), dim) if width is None else (nn.Linear(dim, width), width)


def _blocks(options: Any, width: int) -> nn.ModuleList:
    if width % options.mapper_heads:
        raise UserError(f"method.mapper_heads: a width of {width} cannot be divided by {options.mapper_heads}")
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, options.mapper_heads, width, options.mapper_dropout, "gelu", options.mapper_eps, batch_first=True,
            norm_first=options.mapper_norm == "pre",
        )
        for _ in range(options.mapper_depth)
    )  # fmt: skip


def _through(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    for block in blocks:
        states = block(states)
    return states


def _query(tokens: Tensor, queries: Tensor, blocks: nn.ModuleList) -> Tensor:
    """Return the outputs (B, N, width) of the queries (N, width) behind the tokens (B, T, width)."""
    return _through(blocks, torch.cat([tokens, queries.expand(len(tokens), -1, -1)], 1))[:, -len(queries) :]


def _grouped(tokens: Tensor, layout: TokenLayout, side: int) -> Tensor:
    """Return the patches (B, groups, side * side, width) of each square group, both in reading order."""
    rows, columns = layout.groups("group", side)
    patches = tokens[:, layout.n_special :].unflatten(1, (rows, side, columns, side))
    return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _low_rank(options: Any, dim: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, options.mapper_rank, bias=False), nn.Linear(options.mapper_rank, hidden))


def _mlp(options: Any, dim: int, hidden: int) -> nn.Module:
    width = options.mapper_width or hidden
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, hidden))


def _count_all(options: Any, layout: TokenLayout) -> int:
    return layout.n_tokens


def _count_queries(options: Any, layout: TokenLayout) -> int:
    return int(options.mapper_queries)


def _count_grid(options: Any, layout: TokenLayout) -> int:
    return layout.n_kept + int(options.mapper_grid) ** 2


def _count_groups(options: Any, layout: TokenLayout) -> int:
    rows, columns = layout.groups(options.mapper, options.mapper_group)
    return rows * columns


def _count_resampled(options: Any, layout: TokenLayout) -> int:
    return layout.n_kept + _count_groups(options, layout)


@dataclass(frozen=True)
class _Kind:
    build: Callable[[Any, TokenLayout, int, int], nn.Module]  # (options, layout, dim, hidden)
    count: Callable[[Any, TokenLayout], int]  # of the tokens that come out


_KINDS = {
    "linear": _Kind(lambda o, layout, dim, hidden: nn.Linear(dim, hidden), _count_all),
    "low-rank": _Kind(lambda o, layout, dim, hidden: _low_rank(o, dim, hidden), _count_all),
    "mlp": _Kind(lambda o, layout, dim, hidden: _mlp(o, dim, hidden), _count_all),
    "qp": _Kind(lambda o, layout, dim, hidden: QueryPooling(o, dim, hidden), _count_queries),
    "blocks": _Kind(lambda o, layout, dim, hidden: TokenBlocks(o, dim, hidden), _count_all),
    "attn-pool": _Kind(lambda o, layout, dim, hidden: AttentionPooling(o.mapper_queries, dim, hidden), _count_queries),
    "grid": _Kind(lambda o, layout, dim, hidden: GridMeans(o.mapper_grid, layout, dim, hidden), _count_grid),
    "space-to-depth": _Kind(SpaceToDepth, _count_groups),
    "random-tokens": _Kind(
        lambda o, layout, dim, hidden: nn.Sequential(nn.RMSNorm(dim, eps=o.mapper_eps), nn.Linear(dim, hidden)),
        _count_all,
    ),
    "group-mean": _Kind(
        lambda o, layout, dim, hidden: Resampler(o, layout, dim, hidden, lambda width: GroupMean()), _count_resampled
    ),
    "group-linear": _Kind(
        lambda o, layout, dim, hidden: Resampler(
            o, layout, dim, hidden, lambda width: GroupLinear(o.mapper_group**2, width)
        ),
        _count_resampled,
    ),
    "group-qp": _Kind(
        lambda o, layout, dim, hidden: Resampler(o, layout, dim, hidden, lambda width: GroupQuery(o, width)),
        _count_resampled,
    ),
}


def make_mapper(options: Any, layout: TokenLayout, dim: int, hidden: int) -> nn.Module:
    """Return a new mapper of the kind `options.mapper`. Raises `UserError` if it does not fit the encoder's tokens."""
    return _KINDS[options.mapper].build(options, layout, dim, hidden)


def count_tokens(options: Any, layout: TokenLayout) -> int:
    """Return the number of tokens that come out of a mapper; of random tokens all, as outside training."""
    return _KINDS[options.mapper].count(options, layout)


def output_map(mapper: nn.Module) -> nn.Linear:
    """Return a mapper's last linear map, which leads to the LM's width."""
    return [part for part in mapper.modules() if isinstance(part, nn.Linear)][-1]
