"""Gated cross-attention from the text to an encoder's tokens: x + tanh(g) W rms(attention(q(f(x)), k(V), v(V))).

As in DePALM (arXiv 2403.13499), whose released code splits the queries into heads twice and merges them along another
axis, so that a text position reads later ones. Here each head is merged where it was split, and nothing is dropped out.
"""

import torch
from torch import Tensor, nn


class GatedAttention(nn.Module):
    """What is added to the text's states; nothing at the start, as the gate g is 0, and where no medium is seen.

    f is linear, GELU, linear and an RMS norm. With `narrow` f is an RMS norm alone, and neither maps nor norms have
    biases or weights beside the four matrices.
    """

    def __init__(self, hidden: int, media: int, width: int, heads: int, eps: float, *, narrow: bool) -> None:
        super().__init__()
        self.heads = heads
        self.enter: nn.Module = nn.RMSNorm(hidden, eps, elementwise_affine=False)
        if not narrow:
            self.enter = nn.Sequential(
                nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, width), nn.RMSNorm(width, eps)
            )
        self.query = nn.Linear(hidden if narrow else width, width, bias=not narrow)
        self.key = nn.Linear(media, width, bias=not narrow)
        self.value = nn.Linear(media, width, bias=not narrow)
        self.norm = nn.RMSNorm(width, eps, elementwise_affine=not narrow)
        self.leave = nn.Linear(width, hidden, bias=not narrow)
        self.gate = nn.Parameter(torch.zeros(1))

    def project(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, heads, N, head size) of a medium's tokens (B, N, media)."""
        return self._by_head(self.key(media)), self._by_head(self.value(media))

    def forward(self, text: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """Return what is added to the text's states (B, T, hidden); `visible` (B, 1, T or 1, N) bool."""
        queries = self._by_head(self.query(self.enter(text.float())))
        sees_any = visible.any(-1, keepdim=True)
        # A row that attends to nothing is NaN in some attention kernels.
        read = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible | ~sees_any)
        delta = self.gate.tanh() * self.leave(self.norm(read.transpose(1, 2).flatten(2)))
        return delta * sees_any[:, 0]

    def _by_head(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
