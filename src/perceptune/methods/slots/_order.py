"""What tells several media of a modality apart in slots without positions."""

import torch
from torch import Tensor, nn


class MediumOrder(nn.Module):
    """Scale and bias for the states of the second medium of a modality and later ones, per level.

    Slots in front of the text have no positions, so that nothing else tells the first medium from the second.
    """

    def __init__(self, further: int, levels: int, hidden: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(further, levels, hidden))
        self.bias = nn.Parameter(torch.zeros(further, levels, hidden))

    def forward(self, states: list[Tensor], order: int) -> list[Tensor]:
        """Return the states (B, T, hidden) of each level, of the medium number `order`, counted from 0."""
        if order == 0:
            return states
        return [own * self.scale[order - 1, j] + self.bias[order - 1, j] for j, own in enumerate(states)]
