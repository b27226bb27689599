"""Batches in which each row has an adapter of its own: PEFT's `adapter_names`, in `forward` and in `generate`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from perceptune.methods.dma._errors import DMAError
from perceptune.methods.dma.layer import DMALinear


@contextmanager
def adapter_by_row(model: nn.Module, names: Sequence[str], generation: Mapping[str, Any]) -> Iterator[None]:
    """Give each adapter layer the names of its rows; `generation` holds the arguments of the call.

    Raises `DMAError` in training mode, for merged adapters, and for an adapter that no layer has, as PEFT's LoRA does.
    """
    _require_usable(model, names)
    repeated = [name for name in names for _ in range(_rows_per_prompt(generation))]

    def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # An encoder runs on the prompts, a decoder on their beams: the numbers of rows tell which it is.
        rows = len(args[0] if args else next(iter(kwargs.values())))
        return args, {**kwargs, "adapter_names": repeated if rows == len(repeated) else names}

    handles = [
        module.register_forward_pre_hook(give, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, (DMALinear, AuxiliaryTrainingWrapper))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_usable(model: nn.Module, names: Sequence[str]) -> None:
    if model.training:
        raise DMAError("Cannot pass `adapter_names` when the model is in training mode.")
    layers = [module for module in model.modules() if isinstance(module, DMALinear)]
    if any(layer.merged for layer in layers):
        raise DMAError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    known = {"__base__", *(name for layer in layers for name in layer.dma_p)}
    if unknown := sorted(set(names) - known):
        raise DMAError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")


def _rows_per_prompt(generation: Mapping[str, Any]) -> int:
    """Return how often `generate` repeats a row: for its beams, or for the answers asked for."""
    settings = generation.get("generation_config")
    numbers = (generation.get(key) or getattr(settings, key, None) for key in ("num_beams", "num_return_sequences"))
    return max(number or 1 for number in numbers)
