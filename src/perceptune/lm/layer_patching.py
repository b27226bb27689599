"""Temporary replacements of a decoder block's forward: identity, recomputation."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def identity(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return a block's input unchanged."""
    return hidden_states


def identity_in_tuple(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    """Return a block's input unchanged, for LMs whose blocks return tuples."""
    return (hidden_states,)


def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a block's forward that stores only its input and recomputes the rest in the backward pass."""
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


class _Carried(Protocol):
    hidden: Tensor | None


def checkpointed_layer(carried: Sequence[_Carried], layer: Callable[[Tensor], Tensor], text: Tensor) -> Tensor:
    """Run a layer of split execution and recompute it in the backward pass from the slot groups' earlier states."""
    before = [group.hidden for group in carried]

    def run(hidden: Tensor) -> Tensor:
        for group, held in zip(carried, before, strict=True):
            group.hidden = held
        return layer(hidden)

    return checkpoint(run, text, use_reentrant=False)


@contextlib.contextmanager
def replaced_forward(layers: Iterable[nn.Module], replace: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the forward of some blocks while the LM's own code builds masks and positions; undone on exit."""
    layers = list(layers)
    for layer in layers:
        layer.forward = replace(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class ReachedLayerError(Exception):
    """Raised to end a forward pass once the inputs of a layer are captured."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
