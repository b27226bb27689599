"""What a decoder block does instead of its own forward, for one call: pass on, recompute."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def identity(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """A block that passes its input on."""
    return hidden_states


def identity_in_tuple(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    """The same for LMs whose blocks return tuples."""
    return (hidden_states,)


def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that keeps only its input and computes the rest again in the backward pass."""
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


class _Carried(Protocol):
    hidden: Tensor | None


def checkpointed_layer(carried: Sequence[_Carried], layer: Callable[[Tensor], Tensor], text: Tensor) -> Tensor:
    """One layer of split execution, recomputed in the backward pass from what the groups of slots held before it."""
    before = [group.hidden for group in carried]

    def run(hidden: Tensor) -> Tensor:
        for group, held in zip(carried, before, strict=True):
            group.hidden = held
        return layer(hidden)

    result: Tensor = checkpoint(run, text, use_reentrant=False)
    return result


class ReachedLayerError(Exception):
    """Ends a forward pass early, once the states that enter a layer are known."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
