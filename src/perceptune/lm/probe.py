"""Determine an LM's capabilities from a forward pass on two tokens and a slot."""

import torch
from torch import nn

from perceptune.errors import UserError
from perceptune.lm.architectures import Capabilities
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.types import Slots


@torch.no_grad()
def probe(lm: FrozenLM) -> Capabilities:
    """Return an LM's capabilities. Raises `UserError` for one that cannot have slots.

    An LM that can, but whose attention does not accept keys and values, runs the reference path.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=lm.device)
    mask = torch.ones_like(ids)
    both = torch.ones_like(mask, dtype=torch.bool)
    middle = lm.n_layers // 2
    states = torch.ones(1, 1, lm.hidden_size, device=lm.device)
    slot = Slots("check", middle, {middle: states}, torch.ones(1, dtype=torch.bool))
    name = type(lm.model).__name__
    try:
        logits = lm(ids, mask, [slot], keep=both, use_reference_path=True)  # (2, vocab)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{name} cannot be spliced: {error}") from error
    head = lm.model.get_output_embeddings()
    has_bare_head = False  # some LMs scale or cap their logits behind the head (Gemma 2, Cohere, Granite)
    if type(head) is nn.Linear:
        bare = head(lm.final_hidden_states(ids, mask, [slot], keep=both, use_reference_path=True))
        has_bare_head = torch.allclose(bare, logits, rtol=1e-3, atol=1e-3)
    return Capabilities(has_bare_head, _split_disabled_reason(lm, ids, mask, slot, logits))


def _split_disabled_reason(
    lm: FrozenLM, ids: torch.Tensor, mask: torch.Tensor, slot: Slots, expected: torch.Tensor
) -> str | None:
    name, both = type(lm.model).__name__, torch.ones_like(mask, dtype=torch.bool)
    try:
        difference = (lm(ids, mask, [slot], keep=both) - expected).abs().max() / expected.abs().max()
    except (RuntimeError, TypeError, AttributeError, KeyError, ValueError) as error:
        return f"{name} gives its attention no keys and values from outside ({error})"
    rough = lm.dtype == torch.bfloat16 or getattr(lm.model, "is_quantized", False)
    if not difference < (0.1 if rough else 1e-3):
        return f"{name} computes something else when split (off by {difference:.1e})"
    return None
