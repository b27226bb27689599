"""What a training lightens in a frozen LM computes the same."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from torch import Tensor, nn

import support
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.kernels.optimize import optimize_frozen
from perceptune.lm.kernels.packed_linear import can_pack, packed_weight
from perceptune.lm.probe import probe

TEXT = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))


def frozen(family: str, dtype: torch.dtype = torch.float32) -> FrozenLM:
    lm = FrozenLM(support.random_lm(family).to(dtype))
    lm.capabilities = probe(lm)
    return lm


def loss_and_states(lm: FrozenLM) -> tuple[Tensor, Tensor]:
    mask = torch.ones_like(TEXT)
    keep = torch.zeros_like(mask, dtype=torch.bool)
    keep[:, -3:-1] = True
    with torch.no_grad():
        return (
            lm.loss(TEXT, mask, (), keep=keep, targets=TEXT[:, -2:].flatten()),
            lm.final_hidden_states(TEXT, mask, (), keep=keep),
        )


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lightened_lm_is_the_lm(family: str, dtype: torch.dtype) -> None:
    lm = frozen(family, dtype)
    head = lm.model.get_output_embeddings()
    packable = can_pack(head)
    before = loss_and_states(lm)
    optimize_frozen(lm, 2, 64)
    after = loss_and_states(lm)
    assert (packed_weight(head) is not None) == packable
    if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert packable
    for one, other in zip(before, after, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
def test_compiled_feed_forward_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as `torch.compile` does; C++ is left out, which takes 20 s of a compiler's time."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    lm = frozen("llama")
    before = loss_and_states(lm)
    optimize_frozen(lm, 2, 64, compiled=True)
    assert all(layer.mlp._compiled_call_impl is not None for layer in lm.layers)
    for one, other in zip(before, loss_and_states(lm), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_compiled_is_said() -> None:
    with pytest.raises(UserError, match=r"train\.compile: the blocks of OPTForCausalLM have no feed-forward module"):
        optimize_frozen(frozen("opt"), 2, 64, compiled=True)
