"""The lighter computations of frozen parts: attention on short texts, packed linear maps, root-mean-square norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from perceptune.lm.kernels import short_attention
from perceptune.lm.kernels.packed_linear import can_pack, pack, packed_weight
from perceptune.lm.kernels.rms_norm import fuse_rms_norms


@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("additive", [True, False])
def test_attention_is_that_of_sdpa(shared: int, dtype: torch.dtype, additive: bool) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8, dtype=dtype), torch.randn(2, shared, 9, 8, dtype=dtype)
    value = torch.randn(2, shared, 9, 8, dtype=dtype)
    mask = torch.rand(2, 1, 5, 9) < 0.6
    mask[..., 0] = True
    given = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min) if additive else mask
    results = []
    for ours in (True, False):
        q, k, v = (t.clone().requires_grad_() for t in (query, key, value))
        if ours:
            out, _ = short_attention.attention(nn.Module(), q, k, v, given, scaling=0.3)
        else:
            wide = [t.float().repeat_interleave(4 // t.shape[1], 1) for t in (q, k, v)]
            out = nn.functional.scaled_dot_product_attention(*wide, attn_mask=mask, scale=0.3).transpose(1, 2)
        out.float().pow(2).sum().backward()
        results.append([out.float(), q.grad.float(), k.grad.float(), v.grad.float()])
    tolerance = 1e-5 if dtype == torch.float32 else 6e-2
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=tolerance, rtol=tolerance)


def test_a_row_that_sees_nothing_stays_finite() -> None:
    query = torch.randn(1, 1, 2, 4, requires_grad=True)
    mask = torch.tensor([[[[False, False], [True, True]]]])
    out, _ = short_attention.attention(nn.Module(), query, query, query, mask, scaling=1.0)
    out.sum().backward()
    assert out.isfinite().all()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_attention_passes_on_what_it_does_not_know() -> None:
    query = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match="softcap"):
        short_attention.attention(
            nn.Module(), query, query, query, torch.ones(1, 1, 2, 2, dtype=torch.bool), softcap=3.0
        )


def norm(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    module = kind(16, eps=1e-5).requires_grad_(False)
    module.weight.normal_()
    return module.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lightened_norm_is_the_norm(dtype: torch.dtype) -> None:
    plain, light = norm(LlamaRMSNorm, dtype), norm(LlamaRMSNorm, dtype)
    assert fuse_rms_norms([light, nn.Linear(2, 2)]) == 1
    x = torch.randn(3, 5, 16, dtype=dtype) * 4 + 1
    results = []
    for module in (plain, light):
        given = x.clone().requires_grad_()
        out = module(given)
        (out.float() * torch.arange(16)).sum().backward()
        results.append((out.detach().float(), given.grad.float()))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=tolerance * float(one.abs().max()), rtol=tolerance)


def test_other_norms_and_trained_ones_keep_their_own_way() -> None:
    other = norm(Gemma3RMSNorm)  # 1 + weight
    assert fuse_rms_norms([other]) == 0
    trained = norm(LlamaRMSNorm)
    assert fuse_rms_norms([trained]) == 1
    trained.requires_grad_(True)
    trained(torch.randn(2, 16)).sum().backward()
    assert trained.weight.grad is not None  # type: ignore[union-attr]


def needs_kernels(dtype: torch.dtype) -> None:
    if not can_pack(nn.Linear(8, 8, dtype=dtype).requires_grad_(False)):
        pytest.skip(f"no kernels for {dtype} on this CPU")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_map_gives_the_same(dtype: torch.dtype, bias: bool) -> None:
    """In bfloat16 the same bits."""
    needs_kernels(dtype)
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).requires_grad_(False).to(dtype)
    packed = nn.Linear(24, 40, bias=bias).requires_grad_(False).to(dtype)
    packed.load_state_dict(plain.state_dict())
    assert pack([packed], 1) == 1
    assert pack([packed], 1) == 0  # once is enough
    x = torch.randn(3, 7, 24).to(dtype)
    results = []
    for module in (plain, packed):
        given = x.clone().requires_grad_()
        out = module(given)
        (out.float() ** 2).sum().backward()
        results.append((out, given.grad))
    if dtype == torch.bfloat16:
        assert torch.equal(results[0][0], results[1][0])
        assert torch.allclose(results[0][1].float(), results[1][1].float(), atol=0.1, rtol=2e-2)
    else:
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
    assert packed(x[:0]).shape == (0, 7, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_map_gives_a_row_what_it_gives_it_among_others(dtype: torch.dtype) -> None:
    needs_kernels(dtype)
    torch.manual_seed(0)
    module = nn.Linear(576, 192).requires_grad_(False).to(dtype)
    assert pack([module], 4) == 1
    x = torch.randn(48, 576).to(dtype)
    together = module(x)
    for rows in (2, 3, 16):
        assert torch.equal(module(x[:rows]), together[:rows])
    torch.testing.assert_close(module(x[:1]), together[:1])  # one row alone has a kernel of its own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_of_a_weight_that_has_changed_are_not_used(dtype: torch.dtype) -> None:
    needs_kernels(dtype)
    x = torch.randn(5, 8).to(dtype)

    def packed_map() -> nn.Linear:
        module = nn.Linear(8, 8).requires_grad_(False).to(dtype)
        assert pack([module], 1) == 1
        return module

    loaded, replaced, doubled = packed_map(), packed_map(), packed_map()
    loaded.load_state_dict(nn.Linear(8, 8).to(dtype).state_dict())
    replaced.weight = nn.Parameter(torch.randn(8, 8).to(dtype), requires_grad=False)
    doubled.double()
    for module, given in ((loaded, x), (replaced, x), (doubled, x.double())):
        assert torch.equal(module(given), nn.functional.linear(given, module.weight, module.bias))
    original = packed_map()
    twin = copy.deepcopy(original)
    assert packed_weight(twin) is not None
    twin.weight.zero_()
    assert torch.equal(twin(x), twin.bias.expand(5, 8))
    assert not torch.equal(original(x), twin(x))
    light = norm(LlamaRMSNorm)
    assert fuse_rms_norms([light]) == 1
    other = copy.deepcopy(light)
    other.weight.data.zero_()  # type: ignore[union-attr]
    assert not torch.equal(light(torch.ones(1, 16)), other(torch.ones(1, 16)))


def test_only_frozen_maps_are_packed_and_within_the_budget() -> None:
    needs_kernels(torch.bfloat16)
    frozen = nn.Linear(1024, 1024).requires_grad_(False).bfloat16()
    assert can_pack(frozen)
    assert not can_pack(nn.Linear(8, 8).requires_grad_(False).double())
    assert not can_pack(nn.Linear(8, 8).bfloat16())
    assert pack([frozen], 3) == 0  # two copies of 2 MiB
    assert pack([frozen], 4) == 1
    frozen.weight.requires_grad_(True)
    frozen(torch.randn(1, 1024).bfloat16()).float().sum().backward()
    assert frozen.weight.grad is not None
