"""An exponential moving average of the trained parameters, with which a run is evaluated and saved."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of named parameters over the steps so far, the latest with the largest weight.

    The weights of the steps, decay ** age, are normalised to a sum of 1, as Adam corrects its moments: the values
    before the first step have no part in it, so it is not pulled back to them in a short training.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self._named, self._decay = dict(named), decay
        self._values: list[Tensor] = []  # float32; empty before the first step

    def update(self, step: int) -> None:
        """Add the parameters' values after optimizer step `step` (from 0)."""
        current: list[Tensor] = [parameter.detach() for parameter in self._named.values()]
        if step == 0:
            self._values = [value.float().clone() for value in current]
            return
        kept = self._decay * (1 - self._decay**step) / (1 - self._decay ** (step + 1))
        get_ema_multi_avg_fn(kept)(self._values, [value.float() for value in current], step)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their averages in the block; their own values come back bit by bit."""
        if not self._values:
            yield
            return
        own = [parameter.detach().clone() for parameter in self._named.values()]
        try:
            self._set(self._values)
            yield
        finally:
            self._set(own)

    def _set(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_([*self._named.values()], [*values])

    def clear(self) -> None:
        """Forget all steps."""
        self._values = []

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name; none before the first step."""
        return dict(zip(self._named, self._values, strict=True)) if self._values else {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        self._values = [tensors[name].to(parameter.device) for name, parameter in self._named.items() if tensors]
