"""Two tokens with a slot, before any work: what can this LM do?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from perceptune.errors import UserError
from perceptune.types import Slots

if TYPE_CHECKING:
    from perceptune.lm.frozen_lm import FrozenLM


@torch.no_grad()
def check(lm: FrozenLM) -> None:
    """Raises `UserError` for an LM that cannot be spliced.

    One that can, but whose attention cannot be given keys and values, runs the plain path: `split_disabled` says why.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=lm.device)
    mask = torch.ones_like(ids)
    both = torch.ones_like(mask, dtype=torch.bool)
    middle = lm.n_layers // 2
    states = torch.ones(1, 1, lm.hidden_size, device=lm.device)
    slot = Slots("check", middle, {middle: states}, torch.ones(1, dtype=torch.bool))
    name = type(lm.model).__name__
    try:
        plain = lm(ids, mask, [slot], keep=both, use_reference_path=True)  # (2, vocab)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{name} cannot be spliced: {error}") from error
    head = lm.model.get_output_embeddings()
    lm.bare_head = False  # some LMs scale or cap their logits after the head (Gemma 2, Cohere, Granite)
    if type(head) is nn.Linear:
        bare = head(lm.final_hidden_states(ids, mask, [slot], keep=both, use_reference_path=True))
        lm.bare_head = torch.allclose(bare, plain, rtol=1e-3, atol=1e-3)
    try:
        difference = (lm(ids, mask, [slot], keep=both) - plain).abs().max() / plain.abs().max()
    except (RuntimeError, TypeError, AttributeError, KeyError, ValueError) as error:
        lm.split_disabled = f"{name} gives its attention no keys and values from outside ({error})"
        return
    rough = lm.dtype == torch.bfloat16 or getattr(lm.model, "is_quantized", False)
    if not difference < (0.1 if rough else 1e-3):
        lm.split_disabled = f"{name} computes something else when split (off by {difference:.1e})"
