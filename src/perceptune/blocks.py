"""What a decoder block does instead of its own forward, for one call: pass on, recompute, use plain products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def attention_kernel(device: torch.device, dtype: torch.dtype, length: int) -> contextlib.AbstractContextManager[None]:
    """Plain products for short bfloat16 texts on a CPU.

    The fused kernel's backward took 86 of 255 ms of a demo step (12 layers, 27 columns); without it a step took 195 ms.
    """
    if device.type == "cpu" and dtype == torch.bfloat16 and length <= 256 and torch.is_grad_enabled():
        kernel: contextlib.AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
        return kernel
    return contextlib.nullcontext()


def identity(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """A block that passes its input on."""
    return hidden_states


def identity_in_tuple(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    """The same for LMs whose blocks return tuples."""
    return (hidden_states,)


def checkpointed(
    kernel: Callable[[], contextlib.AbstractContextManager[None]], forward: Callable[..., Any]
) -> Callable[..., Any]:
    """A block's forward that keeps only its input and computes the rest again in the backward pass."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with kernel():  # the second computation, in backward, must choose the same kernel as the first
            return forward(*args, **kwargs)

    return lambda *args, **kwargs: checkpoint(run, *args, use_reentrant=False, **kwargs)


class _Carried(Protocol):
    hidden: Tensor | None


def checkpointed_layer(
    carried: Sequence[_Carried], kernel: Callable[[], contextlib.AbstractContextManager[None]],
    layer: Callable[[Tensor], Tensor], text: Tensor,
) -> Tensor:  # fmt: skip
    """One layer of split execution, recomputed in the backward pass from what the groups of slots held before it."""
    before = [group.hidden for group in carried]

    def run(hidden: Tensor) -> Tensor:
        for group, held in zip(carried, before, strict=True):
            group.hidden = held
        with kernel():  # the second computation, in backward, must choose the same kernel as the first
            return layer(hidden)

    result: Tensor = checkpoint(run, text, use_reentrant=False)
    return result


@contextlib.contextmanager
def replaced_forward(layers: Iterable[nn.Module], replace: Callable[[Any], Any]) -> Iterator[None]:
    """Lets the LM's own code build masks and positions while some blocks do something else; undone on exit."""
    layers = list(layers)
    for layer in layers:
        layer.forward = replace(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
