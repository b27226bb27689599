"""The selections of a level's tokens: names, and the number of cells that a grid of patches can be averaged to."""

import re
from typing import Annotated

from pydantic import AfterValidator
from torch import Tensor, nn

from perceptune.errors import UserError, nearest

NAMES = ("cls", "cls-mean", "grid-4", "all")
_GRID = re.compile(r"grid-([1-9]\d{0,3})")


def _known(tokens: str) -> str:
    if tokens not in NAMES and not _GRID.fullmatch(tokens):
        raise ValueError(
            f"no selection of tokens `{tokens}`{nearest(tokens, NAMES)}; "
            "there are `cls`, `cls-mean`, `grid-G` (G x G means, such as `grid-4`) and `all`"
        )
    return tokens


# `cls`: one token; `cls-mean`: [CLS] and the mean patch; `grid-G`: [CLS], if there is one, and G x G means of patches;
# `all`: every token.
TokenSelection = Annotated[str, AfterValidator(_known)]


def grid_side(tokens: TokenSelection) -> int | None:
    """Return G of `grid-G`, None for other selections."""
    found = _GRID.fullmatch(tokens)
    return None if found is None else int(found[1])


def describe_selection(tokens: TokenSelection) -> str:
    """Return a selection in words, for `perceptune show`."""
    if (side := grid_side(tokens)) is not None:
        return f"[CLS] and {side} x {side} means"
    return {"cls": "[CLS]", "cls-mean": "[CLS] and the mean patch"}.get(tokens, "all tokens")


def grid_means(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Return the means (B, side * side, dim) of patches (B, rows * columns, dim), cut as adaptive pooling cuts them."""
    cells = nn.functional.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, grid), side)
    return cells.flatten(2).transpose(1, 2)


def require_side(side: int, grid: tuple[int, int]) -> None:
    """Raise `UserError` unless `side` divides a square grid of patches, or is at most the sides of another one."""
    height, width = grid
    low = min(grid)
    fitting = [n for n in range(1, low + 1) if height != width or height % n == 0]
    if side not in fitting:
        why = f"which {side} does not divide" if height == width else f"so at most {low} x {low} means"
        best = min(fitting, key=lambda n: (abs(n - side), n))
        raise UserError(f"`tokens: grid-{side}`: it has {height} x {width} patches, {why}; use `grid-{best}`")
