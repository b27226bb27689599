"""Running a block of a Vision Transformer for its first token only."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class BlockParts(NamedTuple):
    """Names of a pre-norm block's parts, for a family whose attention has `q_proj`, `k_proj` and `v_proj`."""

    norms: tuple[str, str]
    attention: str
    out: str  # the attention's output projection
    scales: tuple[str, ...] = ()  # what scales each of the two branches, if anything does

    def first_token(self, block: Any, hidden: Tensor) -> Tensor:
        """(B, T, dim) as it enters the block -> (B, 1, dim): its result for token 0, to rounding.

        Token 0 looks at every token, so all have keys and values; in what follows it is alone.
        """
        attention = getattr(block, self.attention)
        normed = getattr(block, self.norms[0])(hidden)
        inputs = {attention.q_proj: normed[:, :1], attention.k_proj: normed, attention.v_proj: normed}
        query, key, value = (
            project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for project, x in inputs.items()
        )
        seen = nn.functional.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, head_dim)
        seen = getattr(attention, self.out)(seen.transpose(1, 2).flatten(2))
        first, second = [getattr(block, name) for name in self.scales] or [nn.Identity(), nn.Identity()]
        hidden = hidden[:, :1] + first(seen)
        return hidden + second(block.mlp(getattr(block, self.norms[1])(hidden)))
