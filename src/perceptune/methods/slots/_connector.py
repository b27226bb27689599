"""Connectors: an encoder's tokens as states of the LM, a mapper per level or one for all, scaled per layer if asked."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.methods.slots._disturbance import draw_noise
from perceptune.methods.slots._mappers import make_mapper, output_map
from perceptune.methods.slots._token_layout import TokenLayout, draw_tokens
from perceptune.types import Features
from perceptune.utils.tensors import move

RIDGE = 0.1  # of the features' mean variance, added to each


class LevelTokens(nn.Module):
    """An encoder's tokens as they are or standardised, features (B, n_levels, T, dim) -> list of (B, T, dim)."""

    mean: Tensor  # (n_levels, 1, dim)
    std: Tensor

    def __init__(self, levels: int, dim: int, *, standardize: bool, noise: float = 0.0) -> None:
        super().__init__()
        self.standardize, self.noise = standardize, noise
        if standardize:  # statistics of the training split: saved, but not trained
            self.register_buffer("mean", torch.zeros(levels, 1, dim))
            self.register_buffer("std", torch.ones(levels, 1, dim))

    def forward(self, features: Features) -> list[Tensor]:
        return list(self._standardized(features).unbind(1))

    def _standardized(self, features: Features) -> Tensor:
        values = (features.values - self.mean) / self.std if self.standardize else features.values
        return values + draw_noise(features, self.noise) if self.noise and features.draws is not None else values


class Connector(LevelTokens):
    """One mapper per level, or one for all; features (B, n_levels, T, dim) -> list of (B, N, hidden).

    The mappers are those of the recipe's keys under `method`; `connector_std` is that of the initial weights of their
    last linear map.
    """

    def __init__(self, options: Any, levels: int, dim: int, hidden: int, layout: TokenLayout) -> None:
        super().__init__(levels, dim, standardize=options.standardize, noise=options.feature_noise)
        number = 1 if options.shared_connector else levels
        self.maps = nn.ModuleList(make_mapper(options, layout, dim, hidden) for _ in range(number))
        if options.connector_std is not None:
            for mapper in self.maps:
                linear = output_map(mapper)
                nn.init.normal_(linear.weight, std=options.connector_std)
                nn.init.zeros_(linear.bias)
        self.drawn = layout if options.mapper == "random-tokens" else None

    @torch.no_grad()
    def fit(self, level: int, features: Tensor, wanted: Tensor) -> None:
        """Set a level's linear map to the ridge regression from `features` (N, dim) to `wanted` (N, hidden)."""
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

    def forward(self, features: Features) -> list[Tensor]:
        values = self._standardized(features)
        if self.drawn is not None and features.draws is not None:
            index = move(draw_tokens(self.drawn, features.draws), values.device)
            values = values.gather(2, index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3]))
        return [self.maps[min(j, len(self.maps) - 1)](values[:, j]) for j in range(values.shape[1])]


class LayerScale(nn.Module):
    """Scale and bias for the states that enter each injected layer; with `norm` a weighted RMS norm before them.

    DePALM has all three, in which the weight of the norm and the scale say the same.
    """

    def __init__(self, layers: int, hidden: int, *, norm: bool, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(layers, hidden)) if norm else None
        self.scale = nn.Parameter(torch.ones(layers, hidden))
        self.bias = nn.Parameter(torch.zeros(layers, hidden))
        self.eps = eps

    def forward(self, states: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {layer: self._scaled(i, own) for i, (layer, own) in enumerate(states.items())}

    def _scaled(self, i: int, states: Tensor) -> Tensor:
        if self.weight is not None:
            states = nn.functional.rms_norm(states, states.shape[-1:], self.weight[i], self.eps)
        return states * self.scale[i] + self.bias[i]


class SoftPrompt(nn.Module):
    """Trained vectors (n, size), through an MLP in the paper's main model (section 3.2)."""

    def __init__(self, tokens: int, size: int, *, mlp: bool, std: float) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, size))
        nn.init.normal_(self.embedding, std=std)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size)) if mlp else None

    def forward(self) -> Tensor:
        return self.embedding if self.mlp is None else self.mlp(self.embedding)
