"""PETAL's experts behind the Q-Former's embeddings: a mixture gated by the instruction, or the released mean."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from perceptune.config.section import ConfigSection
from perceptune.methods.qformer._pooling import mean_of

RELEASED_SHARE = 0.4  # weight of the experts' mean in the released code; the rest is the input's


class ExpertsOptions(ConfigSection):
    """Options of the adaptive mixture of experts."""

    n: int = Field(3, ge=1, description="number of experts")
    width: int = Field(64, ge=1, description="bottleneck width of each expert")
    form: Literal["gated", "released"] = Field(
        "gated", description="released = the mean of the experts without gate and nonlinearity, on queries and text"
    )
    top_k: int | None = Field(
        None, ge=1, description="number of experts used per row, by gate value; 1 = Switch routing; None = all"
    )
    balance: float = Field(0.0, ge=0, description="weight of the Switch load-balancing loss; 0.01 is usual, 0 = off")

    @model_validator(mode="after")
    def _has_so_many(self) -> ExpertsOptions:
        if self.top_k is not None and self.top_k > self.n:
            raise ValueError(f"`top_k` is {self.top_k}, but there are {self.n} experts")
        if self.form == "released" and (self.top_k is not None or self.balance):
            raise ValueError("`top_k` and `balance` are for `form: gated`: the released mean has no gate")
        return self


class Expert(nn.Module):
    """A bottleneck, 0 at the start: (..., d) -> (..., d)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, width)
        self.up = nn.Linear(width, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(nn.functional.gelu(self.down(x)))


class GatedExperts(nn.Module):
    """t + sum_k g_k E_k(t) for the embedded instruction t, with g = softmax(W mean(t)) of the whole instruction."""

    def __init__(self, size: int, options: ExpertsOptions) -> None:
        super().__init__()
        self.options = options
        self.experts = nn.ModuleList(Expert(size, options.width) for _ in range(options.n))
        self.gate = nn.Linear(size, options.n, bias=False) if options.n > 1 else None

    def forward(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the enhanced text (B, L, d) and the gates (B, n) before any is dropped; `mask` (B, L), 1 = token."""
        gates = self.gates(text, mask)
        acting = self._acting(gates)
        added = torch.stack([expert(text) for expert in self.experts], dim=1)  # (B, n, L, d)
        return text + torch.einsum("bn,bnld->bld", acting, added), gates

    def gates(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return the gates (B, n), computed from each row's tokens alone."""
        if self.gate is None:
            return text.new_ones(len(text), 1)
        return self.gate(mean_of(text, mask)).softmax(-1)

    def balance(self, gates: Tensor) -> Tensor:
        """Return n sum_k f_k P_k (Fedus et al., 2022) of gates (B, n): f_k is k's fraction of rows, P_k its mean gate.

        1 if all experts are used equally, n if only one is used. Without `top_k`, f is P.
        """
        mean = gates.mean(0)
        if self.options.top_k is None:
            return len(mean) * mean.square().sum()
        share = (self._acting(gates) > 0).to(gates.dtype).mean(0) / self.options.top_k
        return len(mean) * (share * mean).sum()

    def _acting(self, gates: Tensor) -> Tensor:
        """Zero all gates but the `top_k` largest; rescaling them to 1 would give a single gate no gradient."""
        if self.options.top_k is None:
            return gates
        kept = gates.topk(self.options.top_k, dim=-1).indices
        return torch.zeros_like(gates).scatter(-1, kept, gates.gather(-1, kept))


class ReleasedExperts(nn.Module):
    """0.6 h + 0.4 mean_k (B_k (A_k h + a_k) + b_k), which changes the model from the start."""

    def __init__(self, size: int, options: ExpertsOptions) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(size, options.width), nn.Linear(options.width, size)) for _ in range(options.n)
        )
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.zeros_(parameter)

    def forward(self, states: Tensor) -> Tensor:
        """Return the enhanced states of queries and text (B, n + L, d)."""
        mean = torch.stack([expert(states) for expert in self.experts]).mean(0)
        return (1 - RELEASED_SHARE) * states + RELEASED_SHARE * mean
