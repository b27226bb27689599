"""Weights of a base model that a method trains."""

from collections.abc import Iterable

import torch
from torch import nn

from perceptune.errors import UserError


class UnfrozenParameters(nn.Module):
    """Parameters of a base model under their own names, with `/` for `.`: the same objects, so the model is trained.

    Weights that a model uses twice appear once. Raises `UserError` for weights that are not float32.
    """

    def __init__(self, what: str, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise UserError(
                    f"method.unfreeze: {what} is held in {str(parameter.dtype).removeprefix('torch.')}, but weights "
                    "are trained in float32: set `train.precision`, `eval.dtype` and the encoder's `dtype` to float32"
                )
            parameter.requires_grad_(True)
            self.register_parameter(name.replace(".", "/"), parameter)
