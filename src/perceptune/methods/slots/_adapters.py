"""Adapters at named modules of a frozen LM."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.slots._method import Site


class Adapter(nn.Module):
    """MAGMA's adapter as a delta: s W2 relu(W1 x), added to a module's output (section 4.1).

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


class AdapterSites(nn.ModuleDict):
    """One adapter for each kind of module (`attention`, `mlp`) in each block of an LM, by `LAYER_KIND`."""

    def __init__(self, lm: FrozenLM, kinds: Sequence[str], factor: int, *, scaled: bool, parallel: bool) -> None:
        super().__init__()
        form = "parallel adapter" if parallel else "adapter on its output"
        # key, module of its input (None: the output of the other), module of its output
        self._places: list[tuple[Site, str, nn.Module | None, nn.Module]] = []
        for layer in range(lm.n_layers):
            for kind in kinds:
                key = f"{layer}_{kind}"
                name, end = lm.site(layer, kind)
                begin = lm.module_input(layer, kind) if parallel else None
                self[key] = Adapter(lm.hidden_size, factor, scaled=scaled)
                self._places.append((Site(layer, name, form), key, begin, end))

    def attach(self) -> None:
        """Register the hooks on the LM."""
        for _, key, begin, end in self._places:
            taken: list[Tensor] | None = None
            if begin is not None:
                taken = []
                begin.register_forward_pre_hook(_taking(taken), with_kwargs=True)
            end.register_forward_hook(self._adding(key, taken))

    def sites(self) -> list[Site]:
        """Return the places of the adapters."""
        return [site for site, *_ in self._places]

    def _adding(self, key: str, taken: list[Tensor] | None) -> Callable[..., Tensor]:
        def add(_: nn.Module, __: Any, y: Tensor) -> Tensor:
            x = y if taken is None else taken.pop()
            return y + self[key](x.float()).to(y.dtype)

        return add


def _taking(taken: list[Tensor]) -> Callable[..., None]:
    """Return a pre-hook that stores a module's input until the adapter's own hook reads it."""

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # If a block was left early, the hook has not read the previous input.
        taken[:] = [args[0] if args else kwargs["hidden_states"]]

    return take
