"""Trained parts that methods are made of: connections, soft prompts, adapters, and base weights taken over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.errors import UserError

RIDGE = 0.1  # of the mean of the features' variances, added to each


class Connector(nn.Module):
    """One linear map per level, or one for all; (B, n_levels, T, dim) -> list of (B, T, hidden).

    `std` is that of its weights at the start; None leaves them as torch initialises them.
    """

    mean: Tensor  # (n_levels, 1, dim)
    std: Tensor

    def __init__(
        self, levels: int, dim: int, hidden: int, *, shared: bool, std: float | None, standardize: bool
    ) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(1 if shared else levels))
        if std is not None:
            for linear in self.maps:
                nn.init.normal_(linear.weight, std=std)  # type: ignore[arg-type]
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        self.standardize = standardize
        if standardize:  # statistics of the training split: kept and saved, but not trained
            self.register_buffer("mean", torch.zeros(levels, 1, dim))
            self.register_buffer("std", torch.ones(levels, 1, dim))

    @torch.no_grad()
    def fit(self, level: int, features: Tensor, wanted: Tensor) -> None:
        """Set a level's map to the ridge regression from `features` (N, dim) to `wanted` (N, hidden)."""
        if self.standardize:
            features = (features - self.mean[level]) / self.std[level]
        middle, goal = features.mean(0), wanted.mean(0)
        x, y = features - middle, wanted - goal
        products = x.T @ x
        products.diagonal().add_(RIDGE * products.diagonal().mean())
        weight = torch.linalg.solve(products, x.T @ y).T
        linear: Any = self.maps[level]
        linear.weight.copy_(weight)
        linear.bias.copy_(goal - weight @ middle)

    def forward(self, features: Tensor) -> list[Tensor]:
        if self.standardize:
            features = (features - self.mean) / self.std
        return [self.maps[min(j, len(self.maps) - 1)](features[:, j]) for j in range(features.shape[1])]


class SoftPrompt(nn.Module):
    """Trained vectors (n, size), through an MLP in the paper's main model (section 3.2)."""

    def __init__(self, tokens: int, size: int, *, mlp: bool, std: float) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, size))
        nn.init.normal_(self.embedding, std=std)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size)) if mlp else None

    def forward(self) -> Tensor:
        return self.embedding if self.mlp is None else self.mlp(self.embedding)


class Adapter(nn.Module):
    """MAGMA's adapter as a delta: s W2 relu(W1 x), to be added to a module's output (section 4.1).

    x is that output (sequential) or the module's input (parallel); s is 1, or trained from 1 on if `scaled`.
    """

    def __init__(self, size: int, factor: int, *, scaled: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(size, size // factor)
        self.up = nn.Linear(size // factor, size)
        for parameter in self.parameters():  # near identity at the start, as in MAGMA
            nn.init.trunc_normal_(parameter, std=1e-3, a=-2e-3, b=2e-3)
        self.scale = nn.Parameter(torch.ones(1)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        delta = self.up(torch.relu(self.down(x)))
        return delta if self.scale is None else delta * self.scale


class UnfrozenParameters(nn.Module):
    """Parameters of a base model under their own names, with `/` for `.`: the same objects, so training moves them.

    Weights that a model uses twice appear once. Raises `UserError` for weights that are not float32.
    """

    def __init__(self, what: str, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise UserError(
                    f"method.unfreeze: {what} is held in {str(parameter.dtype).removeprefix('torch.')}, but weights "
                    "are trained in float32: set `train.precision`, `eval.dtype` and the encoder's `dtype` to float32"
                )
            parameter.requires_grad_(True)
            self.register_parameter(name.replace(".", "/"), parameter)
