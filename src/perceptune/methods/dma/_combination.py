"""Weighted sums of DMA adapters as one adapter: with all their factors, or with fewer by a truncated decomposition."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceptune.errors import nearest
from perceptune.methods.dma._errors import DMAError
from perceptune.methods.dma.config import DMAConfig
from perceptune.methods.dma.layer import DMALinear

KINDS = ("cat", "svd")
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


class Joined(NamedTuple):
    """The factors of all adapters side by side for one group: exactly their weighted sum, of rank R."""

    u: Tensor  # (R, in)
    v: Tensor  # (out, R), times the weights
    core: Tensor  # (R, R, R): blocks on the diagonal
    gate: Tensor  # (R, R), zero for adapters without
    p: list[Tensor]  # (R,) for each layer of the group; zero where it lacks an adapter


def combined_config(
    configs: Mapping[str, DMAConfig], weights: Sequence[float], kind: str, rank: int | None,
    layers: Mapping[str, DMALinear],
) -> DMAConfig:  # fmt: skip
    """Return the configuration of a weighted sum. `layers` are the model's by name.

    Raises `DMAError` for a kind that is no sum of DMA's factors, and for adapters that have none.
    """
    if len(configs) != len(weights) or not configs:
        raise DMAError(f"add_weighted_adapter: {len(configs)} different adapters and {len(weights)} weights")
    if kind not in KINDS:
        raise DMAError(
            f"add_weighted_adapter: `combination_type` cannot be `{kind}`, which adds or prunes entries of each "
            f"matrix' own factors: DMA's are shared{nearest(kind, KINDS)}"
        )
    for name, config in configs.items():
        if config.modules_to_save:
            raise DMAError(f"add_weighted_adapter: `{name}` has `modules_to_save`, whole modules that are not summed")
        if kind == "svd" and config.gated:
            raise DMAError(f"add_weighted_adapter: `{name}` is gated, no matrix to decompose: use `cat`")
    first, *others = configs.values()
    targets = {key: getattr(first, key) for key in TARGETS}
    if any(getattr(other, key) != targets[key] for other in others for key in TARGETS):
        found = [re.escape(name) for name, layer in layers.items() if any(one in layer.dma_p for one in configs)]
        targets = {**dict.fromkeys(TARGETS), "target_modules": "|".join(found)}
    ranks = [[layer.dma_p[name].numel() for name in configs if name in layer.dma_p] for layer in layers.values()]
    gammas = {config.gamma for config in configs.values()} - {None}
    return replace(
        first, **targets, rank_pattern=None, core="tucker", gated=any(config.gated for config in configs.values()),
        r=max(map(sum, ranks)) if kind == "cat" else rank or max(map(max, filter(None, ranks))),
        gamma="diagonal" if len(gammas) > 1 else next(iter(gammas), None), inference_mode=True,
    )  # fmt: skip


@torch.no_grad()
def fill(layers: Sequence[DMALinear], adapter: str, adapters: Mapping[str, float], kind: str) -> None:
    """Give the layers of one group the sum of `adapters` times their weights as the values of `adapter`."""
    factors = joined(layers, adapters)
    if kind == "svd":
        factors = _truncated(factors, layers[0].dma_p[adapter].numel())
    shared = layers[0]
    for part in ("u", "v", "core", "gate"):
        container = getattr(shared, f"dma_{part}")
        if adapter in container:
            _put(container[adapter], getattr(factors, part))
    for layer, p in zip(layers, factors.p, strict=True):
        _put(layer.dma_p[adapter], p)
        if adapter in layer.dma_gamma:
            gamma: Any = layer.dma_gamma
            changes = (weight * (gamma[name] - 1) for name, weight in adapters.items() if name in gamma)
            gamma[adapter].copy_(1 + sum(change.to(gamma[adapter].device) for change in changes))


def joined(layers: Sequence[DMALinear], adapters: Mapping[str, float]) -> Joined:
    """Return the factors of the adapters that these layers of one group have."""
    shared = layers[0]
    present = [name for name in adapters if name in shared.dma_u]
    device = shared.dma_u[present[0]].device
    cores = [_tucker(shared.dma_core[name].to(device)) for name in present]
    gates = [shared.dma_gate[name].to(device) if name in shared.dma_gate else cores[i].new_zeros(cores[i].shape[:2])
             for i, name in enumerate(present)]  # fmt: skip
    return Joined(
        u=torch.cat([shared.dma_u[name].to(device).float() for name in present]),
        v=torch.cat([adapters[name] * shared.dma_v[name].to(device).float() for name in present], 1),
        core=_blocks(cores), gate=_blocks(gates),
        p=[
            torch.cat([
                layer.dma_p[name].to(device).float() if name in layer.dma_p else core.new_zeros(len(core))
                for name, core in zip(present, cores, strict=True)
            ])
            for layer in layers
        ],
    )  # fmt: skip


def _truncated(factors: Joined, r: int) -> Joined:
    """Return factors of rank r whose deltas are close in the sum of squares: a higher-order SVD of the group's tensor.

    The tensor is (out, in, layers); with U and V taken out orthogonally, only (R, R, layers) is decomposed.
    """
    q_u, r_u = torch.linalg.qr(factors.u.T)  # (in, k), (k, R)
    q_v, r_v = torch.linalg.qr(factors.v)
    modes = torch.einsum("jik,lk->ijl", factors.core, torch.stack(factors.p))  # M^T of each layer, stacked last
    small = torch.einsum("ai,ijl,bj->abl", r_v, modes, r_u)
    a_v, a_u = _basis(small, 0, r), _basis(small, 1, r)
    small = torch.einsum("abl,ai,bj->ijl", small, a_v, a_u)
    a_p = _basis(small, 2, r)  # (layers, k)
    return Joined(
        u=(q_u @ a_u).T, v=q_v @ a_v, core=torch.einsum("ijl,lk->jik", small, a_p), gate=factors.gate, p=list(a_p)
    )


def _basis(tensor: Tensor, mode: int, r: int) -> Tensor:
    """Return the r directions (size, r or fewer) that hold most of the tensor along one of its modes."""
    left, _, _ = torch.linalg.svd(tensor.movedim(mode, 0).flatten(1), full_matrices=False)
    return left[:, :r]


def _tucker(core: Tensor) -> Tensor:
    """Return a core as (r, r, r); lambda lies on its diagonal."""
    if core.dim() == 3:
        return core.float()
    whole, index = core.new_zeros((len(core),) * 3, dtype=torch.float32), range(len(core))
    whole[index, index, index] = core.float()
    return whole


def _blocks(parts: Sequence[Tensor]) -> Tensor:
    """Return cubes or squares as blocks on the diagonal of a larger one."""
    size, start = sum(len(part) for part in parts), 0
    whole = parts[0].new_zeros((size,) * parts[0].dim(), dtype=torch.float32)
    for part in parts:
        whole[(slice(start, start + len(part)),) * part.dim()] = part
        start += len(part)
    return whole


def _put(parameter: Tensor, value: Tensor) -> None:
    """Write a value that may be smaller, the rest being zero."""
    parameter.zero_()
    parameter[tuple(slice(size) for size in value.shape)] = value.to(parameter)
