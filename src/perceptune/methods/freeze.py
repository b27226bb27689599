"""Freezing of parts of a method."""

from collections.abc import Sequence
from itertools import accumulate

from torch import nn

from perceptune.errors import UserError, nearest


def freeze(method: nn.Module, parts: Sequence[str]) -> None:
    """Freeze the named parts of a method: `prompt`, `connectors.image`, a full parameter name.

    Raises `UserError` for a part without parameters, and if nothing is left to train.
    """
    named = dict(method.named_parameters())
    for part in parts:
        found = [parameter for name, parameter in named.items() if f"{name}.".startswith(f"{part}.")]
        if not found:
            known = {start for name in named for start in accumulate(name.split("."), "{}.{}".format)}
            raise UserError(f"`train.freeze`: the method has no part `{part}`{nearest(part, known)}")
        for parameter in found:
            parameter.requires_grad_(False)
    if parts and not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(f"`train.freeze`: {', '.join(parts)} is all there is: nothing is left to train")
