"""PETAL's baselines: counts on the published configuration, what is the same at the start, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

import blips
import perceptune
from benchmarks.qformer import Load, qformer_rows
from perceptune.config.recipe import load_recipe
from perceptune.errors import UserError
from perceptune.methods.dma import DMALinear, layer
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.tools.summary import summarize
from perceptune.types import Sample

VICUNA = "Salesforce/instructblip-vicuna-7b"
# Attention of the text's width, cross-attention's values: what comes nearest to the deck's 5.0 million.
FEWER = r".*(layer\.\d+\.attention\.attention\.(query|key|value)|crossattention\.attention\.(query|value))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blips.save_all(tmp_path_factory.mktemp("baselines"), ("t5", "llama", "blip2-opt"))


def model_of(folder: Path, method: Any, kind: str = "t5", **more: Any) -> InstructBlipModel:
    given = blips.recipe(folder / kind, method=method, cache={"features": "memory"}, **more)
    return cast(InstructBlipModel, perceptune.build(given))


def samples(folder: Path) -> list[Sample]:
    asked = [("color?", "red"), ("what color is this picture?", "blue")]
    return [Sample(str(i), {"image": folder / f"data/train{i}.png"}, q, (a,)) for i, (q, a) in enumerate(asked)]


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("full", 185_660_160 + 24_576 + 3_149_824),
        ("head", 11_811_840),
        ("maple", 5 * (768 * 768 + 768) + 5 * 2 * 768),
        ("llama-adapter", 12 * (10 * 768 + 12)),
        ({"name": "llama-adapter", "as_released": True}, 12 * 398_720),
        ("lora", 64 * (42 * 2 * 768 + 12 * (1408 + 768))),
        ({"name": "lora", "peft": {"target_modules": FEWER}}, 64 * (42 * 2 * 768 + 6 * (1408 + 768))),
        ({"name": "lora", "peft": {"peft_type": "DMA"}}, 765_312),
        ("llava", 1408 * 768 + 768 + 3_149_824 + 6_738_423_808),
    ],
)
def test_counts_on_the_published_configuration(method: Any, trained: int) -> None:
    shown = summarize(load_recipe({"name": "x", "backbone": "instructblip", "lm": VICUNA, "method": method}))
    assert shown["trainable"] == trained


@pytest.mark.parametrize("kind", ["t5", "llama", "blip2-opt"])
@pytest.mark.parametrize(
    "method",
    [
        "llama-adapter", {"name": "llama-adapter", "as_released": True, "r": 4}, "lora",
        {"name": "lora", "peft": {"peft_type": "DMA", "r": 4}}, "full", "head",
    ],
    ids=str,
)  # fmt: skip
def test_nothing_changes_at_the_start(folder: Path, method: Any, kind: str) -> None:
    """But for rounding; with everything that can be moved it does change."""
    rows = samples(folder)
    with torch.no_grad():
        plain = model_of(folder, "head", kind).query(rows).queries
        model = model_of(folder, method, kind)
        assert torch.allclose(model.query(rows).queries, plain, atol=1e-6)
        for parameter in model.method.parameters():
            parameter.add_(0.1)
        assert not torch.allclose(model.query(rows).queries, plain, atol=1e-3)


def test_only_some_text_prompts_of_maple_reach_the_answer_through_the_text(folder: Path) -> None:
    """Text prompts act beside their maps: with all maps at zero they still do."""
    model, rows = model_of(folder, "maple", "t5"), samples(folder)
    with torch.no_grad():
        for coupling in cast(Any, model.method).couplings:
            coupling.weight.zero_()
        before = model.query(rows).queries
        cast(Any, model.method).prompts.add_(1)
        assert (model.query(rows).queries - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["t5", "blip2-opt"])
def test_maple_s_prompts_shift_nothing(folder: Path, kind: str) -> None:
    """Queries and text enter the first layer as they would alone; the text's states come back without the prompts."""
    plain, model, rows = model_of(folder, "head", kind), model_of(folder, "maple", kind), samples(folder)
    entering: list[torch.Tensor] = []
    for one in (plain, model):
        first = cast(Any, one.blip.layers[0]).attention
        first.register_forward_pre_hook(
            lambda _, args, kwargs: entering.append((*args, *kwargs.values())[0]), with_kwargs=True
        )
    with torch.no_grad():
        expected, text = plain.query(rows).text, model.query(rows).text
    alone, prompted = entering
    n, length = blips.N_QUERIES, alone.shape[1] - blips.N_QUERIES
    assert prompted.shape[1] == n + 2 + (length + 2 if length else 0)
    assert torch.equal(prompted[:, :n], alone[:, :n])
    assert torch.equal(prompted[:, n + 2 : n + 2 + length], alone[:, n:])
    if expected is None:
        assert text is None
    else:
        assert text is not None
        assert text.shape == expected.shape


@pytest.mark.parametrize("kind", ["t5", "blip2-opt"])
def test_the_bottlenecks_of_the_release_act_twice_where_there_is_cross_attention(folder: Path, kind: str) -> None:
    model, rows = model_of(folder, {"name": "llama-adapter", "as_released": True, "r": 4}, kind), samples(folder)
    calls: list[int] = []
    for index, part in enumerate(cast(Any, model.method).parts):
        part.register_forward_hook(lambda *_, index=index: calls.append(index))
    model.query(rows)
    assert calls == [0, 0, 1, 2, 2, 3]


def products_of(module: torch.nn.Module, run: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of the products with DMA's U while `run` runs."""
    parts = [part for part in module.modules() if isinstance(part, DMALinear)]
    factors = {id(u): u.shape[1] for part in parts for u in part.dma_u.values()}
    seen: list[int] = []
    linear = torch.nn.functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if id(weight) in factors:
            seen.append(factors[id(weight)])
        return linear(x, weight, bias)

    with monkeypatch.context() as patched:
        patched.setattr(layer.functional, "linear", counted)
        run()
    return seen


def test_maps_of_one_input_share_what_dma_makes_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding the same loss and gradients; U meets the image once a pass, and nothing is kept after it."""
    rows, model = (
        samples(folder),
        model_of(folder, {"name": "lora", "peft": {"peft_type": "DMA", "r": 3, "dropout": 0}}),
    )
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    def learnt() -> list[torch.Tensor]:
        model.method.zero_grad()
        loss, _ = model.loss(model.collate(rows))
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.method.parameters() if p.grad is not None)]

    found: list[list[torch.Tensor]] = []
    widths = products_of(model.blip.qformer, lambda: found.append(learnt()), monkeypatch)
    assert (widths.count(24), widths.count(blips.WIDTH)) == (1, 4 + 2)
    for part in model.blip.qformer.modules():
        if isinstance(part, DMALinear):
            assert part.products == {}
            part.products = None
    widths = products_of(model.blip.qformer, lambda: found.append(learnt()), monkeypatch)
    assert (widths.count(24), widths.count(blips.WIDTH)) == (4, 3 * 4 + 2)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))


def test_llava_gives_the_lm_every_patch(folder: Path) -> None:
    model, rows = model_of(folder, "llava", "llama"), samples(folder)
    assert model.query(rows).queries.shape == (2, 4, blips.WIDTH)
    assert model.blip.n_queries == 4
    image = torch.randn(2, 5, model.blip.image_size)
    other = torch.cat([torch.zeros(2, 1, model.blip.image_size), image[:, 1:]], dim=1)
    assert torch.equal(*(model.method.queries(model.blip, one, []).queries for one in (image, other))), "no [CLS]"
    finer = model_of(folder, "llava", "llama", encoders={"image": {"size": 24}})
    assert finer.query(rows).queries.shape == (2, 9, blips.WIDTH)
    groups = {group["name"]: group.get("lr") for group in model.method.param_groups()}
    assert groups == {"connector": None, "lm": 2e-5}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "maple", "depth": 5}, "4 layers, not 5"),
        ({"name": "llama-adapter", "layers": 5}, "4 layers, not 5"),
        ({"name": "llama-adapter", "layers": 2, "as_released": True}, "in every layer"),
        ({"name": "lora", "peft": {"rank": 3}}, "no key `rank`"),
        ({"name": "lora", "peft": {"peft_type": "LORRA"}}, "no `LORRA`"),
        ({"name": "lora", "peft": {"target_modules": "q_proj"}}, "PEFT refuses"),
    ],
)
def test_what_is_refused(folder: Path, method: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(folder, method)


def test_what_leaves_no_room_for_prompts_is_refused(folder: Path) -> None:
    model = model_of(folder, {"name": "maple", "tokens": 20})
    with pytest.raises(UserError, match=r"no room for the 20 prompts"):
        model.query(samples(folder))


def test_half_precision_weights_are_not_trained(folder: Path) -> None:
    with pytest.raises(UserError, match="float32"):
        perceptune.build(blips.recipe(folder / "llama", method="llava"), dtype="bfloat16")


@pytest.mark.filterwarnings("ignore:DMA's group")  # which is made for the published widths
def test_steps_on_the_published_shape_have_ratios_to_the_first_row() -> None:
    found = qformer_rows(["head", "maple", "petal-dma"], 1, Load(batch=2, patches=4), tiny=True)
    assert list(found["ratios"]) == [
        "head_vs_head", "maple_vs_head", "petal-dma_vs_head", "LM alone_vs_head"
    ]  # fmt: skip
    assert found["ratios"]["head_vs_head"] == 1
    assert [row["name"] for row in found["rows"]] == ["head", "maple", "petal-dma", "LM alone"]
    assert all(row["trained"] > 0 for row in found["rows"][:3])
