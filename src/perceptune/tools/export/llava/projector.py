"""LLaVA's projector from a run's connector: linear map, GELU, linear map, of the same outputs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceptune.errors import UserError


class Affine(NamedTuple):
    """A map x -> weight @ x + bias in float64."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)


class Projector(NamedTuple):
    """Weights of `linear_1` and `linear_2`, and the name of the activation between them."""

    first: Affine
    second: Affine
    activation: str

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names they have in LLaVA's projector."""
        return {
            f"linear_{number}.{name}": getattr(own, name).float()
            for number, own in ((1, self.first), (2, self.second))
            for name in ("weight", "bias")
        }


def projector_of(connector: Any, mapper: str, hidden: int) -> Projector:
    """Return the projector of a connector with one level; `hidden` is the LM's width, to which both maps lead.

    Statistics of a connector that standardises are part of the first map. Raises `UserError` for an `mlp` that is
    wider than the LM.
    """
    [kind] = connector.maps
    maps = [_affine(part) for part in kind.modules() if isinstance(part, nn.Linear)]
    if connector.standardize:
        maps[0] = _standardizing(maps[0], connector.mean.flatten().double(), connector.std.flatten().double())
    if mapper == "mlp":
        first, second = maps
        if len(first.bias) > hidden:
            raise UserError(
                f"LLaVA's layout has no place for this run: `method.mapper_width` is {len(first.bias)}, and its "
                f"connector is as wide as the LM, {hidden}"
            )
        return _widened(first, second, hidden, "gelu")
    first, second = maps if len(maps) == 2 else _from_identity(maps[0])
    if 2 * len(first.bias) > hidden:
        product = Affine(second.weight @ first.weight, second.weight @ first.bias + second.bias)
        return Projector(product, Affine(torch.eye(hidden).double(), torch.zeros(hidden).double()), "linear")
    # A linear map passes through GELU unchanged if it is there twice, with both signs: as gelu(x) = x P(x) with the
    # normal distribution's P, and P(x) + P(-x) = 1, gelu(x) - gelu(-x) = x P(x) + x P(-x) = x.
    doubled = Affine(torch.cat([first.weight, -first.weight]), torch.cat([first.bias, -first.bias]))
    return _widened(doubled, Affine(torch.cat([second.weight, -second.weight], 1), second.bias), hidden, "gelu")


def _affine(linear: nn.Linear) -> Affine:
    weight = linear.weight.detach().cpu().double()
    bias = torch.zeros(len(weight)).double() if linear.bias is None else linear.bias.detach().cpu().double()
    return Affine(weight, bias)


def _standardizing(own: Affine, mean: Tensor, std: Tensor) -> Affine:
    """Return the map of x that `own` makes of (x - mean) / std."""
    weight = own.weight / std.cpu()
    return Affine(weight, own.bias - weight @ mean.cpu())


def _from_identity(own: Affine) -> tuple[Affine, Affine]:
    """Return the narrower of the two ways to write a map as two, of which one changes nothing."""
    out, given = own.weight.shape
    if out < given:
        return own, Affine(torch.eye(out).double(), torch.zeros(out).double())
    return Affine(torch.eye(given).double(), torch.zeros(given).double()), own


def _widened(first: Affine, second: Affine, hidden: int, activation: str) -> Projector:
    """Return the projector with zeros, which GELU keeps, up to the width of LLaVA's first map."""
    missing = hidden - len(first.bias)
    rows = Affine(nn.functional.pad(first.weight, (0, 0, 0, missing)), nn.functional.pad(first.bias, (0, missing)))
    columns = Affine(nn.functional.pad(second.weight, (0, missing)), second.bias)
    return Projector(rows, columns, activation)
