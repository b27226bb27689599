"""Attention for short texts: one product for all heads that share a key, with the mask added in the same product.

Registered with transformers under names of its own; cases it does not support use transformers' `sdpa`. On a CPU
the fused kernel's backward pass is optimised for long texts: in bfloat16 it took 86 of 255 ms of a training step on
27 columns, and repeating keys for the heads that share them costs as much as multiplying.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "perceptune"
WHOLE = "perceptune-whole"  # the same, for an LM without slots
PLAIN = "perceptune-sdpa"  # transformers' attention with our masks
LONGEST = 256  # columns


def replace_sdpa(config: Any, name: str) -> None:
    """Set the attention of a config from transformers' `sdpa` to one of the names above."""
    register()
    if getattr(config, "_attn_implementation", None) == "sdpa":
        config._attn_implementation = name


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Return (B, Q, heads, d); queries (B, heads, Q, d), keys (B, key heads, K, d), mask (B, 1, Q, K), True = seen."""
    plain = {"dropout", "scaling", "sliding_window", "is_causal", "position_ids", "use_cache", "cache_position"}
    unknown = [name for name, value in options.items() if value is not None and name not in plain]
    if unknown or attention_mask is None or options.get("dropout") or not _short(query, key):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return grouped_attention(query, key, value, attention_mask, scale), None


def _short(query: Tensor, key: Tensor) -> bool:
    return query.device.type == "cpu" and key.shape[2] <= LONGEST and torch.is_grad_enabled()


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute attention without checking whether the case is supported."""
    batch, heads, length, size = query.shape
    shared, columns = key.shape[1], key.shape[2]
    group = heads // shared
    q = query.reshape(batch * shared, group * length, size)
    k = key.reshape(batch * shared, columns, size)
    v = value.reshape(batch * shared, columns, value.shape[-1])
    bias = additive(mask, query.dtype)  # (B, 1, Q, K)
    bias = bias[:, :, None].expand(batch, shared, group, length, columns).reshape(batch * shared, -1, columns)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    # The CPU's softmax takes 4 times as long in bfloat16 as in float32, its gradient 10 times.
    wide = torch.float32 if scores.dtype == torch.bfloat16 else None
    weights = scores.softmax(-1, dtype=wide).to(v.dtype)
    mixed = torch.bmm(weights, v).view(batch, heads, length, -1)
    return mixed.transpose(1, 2).contiguous()


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a mask (True = visible) to a bias added to the scores; an additive mask is returned unchanged."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def causal_mask(n: int, device: torch.device) -> Tensor:
    """Return a mask (1, 1, n, n): each column attends to itself and to those before it."""
    return torch.ones(1, 1, n, n, dtype=torch.bool, device=device).tril()


def in_terms_of(mask: Tensor | None, visible: Tensor) -> Tensor:
    """Convert `visible` (True = visible) to another mask's form: bool, or float to be added to the scores."""
    return visible if mask is None or mask.dtype == torch.bool else additive(visible, mask.dtype)


def show_something(mask: Tensor) -> Tensor:
    """Return a boolean mask (..., Q, K) in which fully masked query rows, such as padding, attend to everything.

    No other row is changed. The output of such a row is not used, but its gradient is NaN in some attention kernels on
    GPUs, and spreads.
    """
    return mask | ~mask.any(-1, keepdim=True)


def make_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Run transformers' `sdpa_mask`; on a GPU without its check for padding, which would synchronise."""
    if attention_mask is None or attention_mask.device.type == "cpu":
        return sdpa_mask(attention_mask=attention_mask, **kwargs)
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(attention_mask=attention_mask, **{**kwargs, **skips})


def make_whole_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Make masks for an LM without slots, which nothing extends later: on a GPU no row is fully masked."""
    mask = make_mask(attention_mask=attention_mask, **kwargs)
    if mask is None or mask.device.type == "cpu" or mask.dtype != torch.bool or not torch.is_grad_enabled():
        return mask
    return show_something(mask)


def register() -> None:
    """Register the names with transformers."""
    for name, compute, mask in (
        (NAME, attention, make_mask), (WHOLE, attention, make_whole_mask), (PLAIN, sdpa_attention_forward, make_mask),
    ):  # fmt: skip
        ALL_ATTENTION_FUNCTIONS.register(name, compute)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
