"""Mappers against literal readings of their definitions, their counts, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.methods.base import count
from perceptune.methods.slots._connector import Connector, LayerScale
from perceptune.methods.slots._mappers import count_tokens, make_mapper
from perceptune.methods.slots._options import MAPPER_KEYS, InjectionOptions
from perceptune.methods.slots._token_layout import TokenLayout, draw_tokens
from perceptune.types import Draws, Features

DIM, HIDDEN = 12, 20
LAYOUT = TokenLayout(2 + 16, 2, (4, 4), "image")  # [CLS], a register and 4 x 4 patches
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {}, "low-rank": {"mapper_rank": 3}, "mlp": {}, "qp": {"mapper_width": 8, "mapper_queries": 3},
    "blocks": {"mapper_width": 8}, "attn-pool": {"mapper_queries": 3}, "grid": {"mapper_grid": 3},
    "space-to-depth": {}, "random-tokens": {}, "group-mean": {}, "group-linear": {"mapper_width": 8},
    "group-qp": {"mapper_width": 8},
}  # fmt: skip
SMALL = {"mapper_heads": 2, "mapper_dropout": 0.0}


def options_of(kind: str, **more: Any) -> InjectionOptions:
    small = {key: value for key, value in SMALL.items() if key in MAPPER_KEYS[kind]}
    return InjectionOptions(tokens="all", **{"mapper": kind, **OPTIONS[kind], **small, **more})


def mapper_of(kind: str, layout: TokenLayout = LAYOUT, **more: Any) -> Any:
    """A mapper far from any neutral start."""
    torch.manual_seed(2)
    mapper = make_mapper(options_of(kind, **more), layout, DIM, HIDDEN)
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return mapper


def tokens_of(batch: int = 4, layout: TokenLayout = LAYOUT) -> Tensor:
    return torch.randn(batch, layout.n_tokens, DIM, generator=torch.Generator().manual_seed(5))


def norm(x: Tensor, layer: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def attention(x: Tensor, block: Any) -> Tensor:
    own = block.self_attn
    q, k, v = (x @ own.in_proj_weight.T + own.in_proj_bias).chunk(3, -1)
    width, heads = x.shape[-1], own.num_heads
    parts = []
    for h in range(heads):
        of = slice(h * width // heads, (h + 1) * width // heads)
        scores = q[..., of] @ k[..., of].transpose(1, 2) / (width / heads) ** 0.5
        parts.append(scores.softmax(-1) @ v[..., of])
    return torch.cat(parts, -1) @ own.out_proj.weight.T + own.out_proj.bias


def feed_forward(x: Tensor, block: Any) -> Tensor:
    inside = x @ block.linear1.weight.T + block.linear1.bias
    inside = 0.5 * inside * (1 + torch.erf(inside / 2**0.5))
    return inside @ block.linear2.weight.T + block.linear2.bias


def queried(x: Tensor, queries: Tensor, blocks: Any, *, pre: bool = False) -> Tensor:
    """The definition: the queries behind the tokens, full attention, the last outputs."""
    x = torch.cat([x, queries[None].repeat(len(x), 1, 1)], 1)
    for block in blocks:
        if pre:
            x = x + attention(norm(x, block.norm1), block)
            x = x + feed_forward(norm(x, block.norm2), block)
        else:
            x = norm(x + attention(x, block), block.norm1)
            x = norm(x + feed_forward(x, block), block.norm2)
    return x[:, len(x[0]) - len(queries) :]


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("width", [8, None])
def test_query_pooling_is_its_definition(pre: bool, width: int | None) -> None:
    mapper = mapper_of("qp", mapper_norm="pre" if pre else "post", mapper_width=width).double()
    tokens = tokens_of().double()
    entered = tokens if width is None else tokens @ mapper.enter.weight.T + mapper.enter.bias
    expected = queried(entered, mapper.queries, mapper.blocks, pre=pre) @ mapper.leave.weight.T + mapper.leave.bias
    assert mapper(tokens).shape == (4, 3, HIDDEN)
    assert torch.allclose(mapper(tokens), expected, atol=1e-6)
    with torch.no_grad():  # where torch may take a faster way
        assert torch.allclose(mapper.eval()(tokens), expected, atol=1e-6)


@pytest.mark.parametrize("width", [8, None])
def test_blocks_are_those_of_query_pooling_on_the_tokens_alone(width: int | None) -> None:
    mapper = mapper_of("blocks", mapper_width=width).double()
    tokens = tokens_of().double()
    states = tokens if width is None else tokens @ mapper.enter.weight.T + mapper.enter.bias
    for block in mapper.blocks:
        states = norm(states + attention(states, block), block.norm1)
        states = norm(states + feed_forward(states, block), block.norm2)
    expected = states @ mapper.leave.weight.T + mapper.leave.bias
    assert torch.allclose(mapper(tokens), expected, atol=1e-6)


def groups(x: Tensor) -> list[Tensor]:
    """The 2 x 2 groups of 4 x 4 patches, each (B, 4, width), in reading order."""
    patches = x[:, 2:]
    corners = [4 * row + column for row in (0, 2) for column in (0, 2)]
    return [torch.stack([patches[:, at + i] for i in (0, 1, 4, 5)], 1) for at in corners]


@pytest.mark.parametrize("kind", ["group-mean", "group-linear", "group-qp"])
def test_resamplers_are_their_definition(kind: str) -> None:
    mapper, tokens = mapper_of(kind).double(), tokens_of().double()
    entered = tokens @ mapper.enter.weight.T + mapper.enter.bias
    pool = {
        "group-mean": lambda group: group.mean(1),
        "group-linear": lambda group: torch.cat(group.unbind(1), -1) @ mapper.pool.map.weight.T + mapper.pool.map.bias,
        "group-qp": lambda group: queried(group, mapper.pool.query, mapper.pool.blocks)[:, 0],
    }[kind]
    pooled = torch.stack([entered[:, 0], *map(pool, groups(entered))], 1)
    expected = rms(pooled, mapper.norm.weight, 1e-4) @ mapper.leave.weight.T + mapper.leave.bias
    assert mapper(tokens).shape == (4, 5, HIDDEN)
    assert torch.allclose(mapper(tokens), expected, atol=1e-6)


def test_space_to_depth_joins_each_group() -> None:
    mapper, tokens = mapper_of("space-to-depth").double(), tokens_of().double()
    joined = torch.stack([torch.cat(group.unbind(1), -1) for group in groups(tokens)], 1)
    [linear] = mapper.maps
    assert torch.allclose(mapper(tokens), joined @ linear.weight.T + linear.bias, atol=1e-6)


def test_a_grid_holds_the_means_of_its_cells_behind_cls() -> None:
    mapper, tokens = mapper_of("grid", mapper_grid=2), tokens_of()
    means = torch.stack([tokens[:, 0], *(group.mean(1) for group in groups(tokens))], 1)
    assert torch.allclose(mapper(tokens), mapper.leave(means), atol=1e-6)
    whole = mapper_of("grid", mapper_grid=4)
    assert torch.allclose(whole(tokens), whole.leave(torch.cat([tokens[:, :1], tokens[:, 2:]], 1)), atol=1e-6)
    bare = TokenLayout(16, 0, (4, 4), "image")  # an encoder without [CLS]
    assert mapper_of("grid", bare)(tokens[:, 2:]).shape == (4, 9, HIDDEN)


def test_attention_pooling_is_a_weighted_mean() -> None:
    mapper, tokens = mapper_of("attn-pool"), tokens_of()
    for n, query in enumerate(mapper.queries):
        weights = ((tokens * query).sum(-1) / DIM**0.5).softmax(-1)
        expected = mapper.leave((tokens * weights[..., None]).sum(1))
        assert torch.allclose(mapper(tokens)[:, n], expected, atol=1e-5)
    with torch.no_grad():
        mapper.queries.zero_()
    assert torch.allclose(mapper(tokens), mapper.leave(tokens.mean(1, keepdim=True)).expand(-1, 3, -1), atol=1e-6)


@pytest.mark.parametrize("kind", OPTIONS)
def test_each_row_is_mapped_by_itself_to_the_tokens_that_are_counted(kind: str) -> None:
    mapper, tokens = mapper_of(kind), tokens_of()
    together = mapper(tokens)
    assert together.shape == (4, count_tokens(options_of(kind), LAYOUT), HIDDEN)
    for i in range(4):
        assert torch.allclose(mapper(tokens[i : i + 1])[0], together[i], atol=1e-6)
    assert torch.isfinite(mapper(torch.zeros_like(tokens))).all(), "a row without a medium holds zeros"


def test_every_kind_is_tried() -> None:
    assert OPTIONS.keys() == MAPPER_KEYS.keys()


LARGE, BASE = (1024, 4096, TokenLayout(257, 1, (16, 16), "image")), (384, 576, TokenLayout(257, 1, (16, 16), "image"))
# Options, and what they train on CLIP-L with an LM of 4096 and on DINOv2-S with SmolLM2-135M.
COUNTS: list[tuple[dict[str, Any], int, int | None, int | None]] = [  # options, levels, counts
    ({}, 1, 4_198_400, 221_760),
    ({"mapper": "grid"}, 1, 4_198_400, 221_760),
    ({}, 6, 25_190_400, 1_330_560),
    ({"mapper": "low-rank", "mapper_rank": 64}, 6, 1_990_656, 372_096),
    ({"mapper": "random-tokens"}, 1, 4_203_520 - 4096, 222_720 - 576),
    ({"mapper": "attn-pool", "mapper_queries": 16}, 1, 4_214_784, 227_904),
    ({"mapper": "group-mean"}, 1, 20_987_904 - 4096, 555_264 - 576),
    ({"mapper": "group-linear"}, 1, 88_100_864 - 4096, 1_882_944 - 576),
    ({"mapper": "space-to-depth"}, 1, 16_781_312, 885_312),
    ({"mapper": "space-to-depth", "mapper_group": 4, "mapper_rank": 128}, 1, 2_625_664, 860_864),
    ({"mapper": "qp", "mapper_width": 256, "mapper_depth": 4}, 1, 2_906_368, 1_837_888),
    ({"mapper": "qp", "mapper_width": 1024}, 1, 17_888_256 - 4096, 13_621_376 - 576),
    ({"mapper": "qp", "mapper_width": 256}, 1, 2_114_816, 1_046_336),
    ({"mapper": "qp", "mapper_width": 192, "mapper_queries": 16}, 1, 1_436_608, 634_368),
    ({"mapper": "qp", "mapper_depth": 1, "mapper_queries": 16}, 1, None, 1_116_480),
    ({"mapper": "qp", "mapper_width": 256, "mapper_queries": 16, "shared_connector": True}, 4, None,
     1_065_280 - 16 * 576 - 2 * 12 * 576),
    ({"mapper": "group-qp", "mapper_width": 192}, 1, 1_438_016 - 4096, 632_256 - 576),
    ({"mapper": "mlp"}, 1, 1025 * 4096 + 4097 * 4096, 385 * 576 + 577 * 576),
]  # fmt: skip


@pytest.mark.parametrize(("given", "levels", "large", "small"), COUNTS)
def test_counts(given: dict[str, Any], levels: int, large: int | None, small: int | None) -> None:
    for (dim, hidden, layout), expected in ((LARGE, large), (BASE, small)):
        if expected is not None:
            with torch.device("meta"):
                assert (
                    count(Connector(InjectionOptions(tokens="all", **given), levels, dim, hidden, layout)) == expected
                )


def test_scale_and_bias_of_each_layer() -> None:
    states = {3: torch.randn(2, 4, HIDDEN), 5: torch.randn(2, 4, HIDDEN)}
    for normed in (False, True):
        scaled = LayerScale(2, HIDDEN, norm=normed, eps=1e-4)
        fresh = scaled(states)
        for layer, own in states.items():
            assert torch.allclose(fresh[layer], rms(own, torch.ones(HIDDEN), 1e-4) if normed else own, atol=1e-5)
        with torch.no_grad():
            for parameter in scaled.parameters():
                parameter.add_(torch.randn_like(parameter))
        for i, (layer, own) in enumerate(states.items()):
            inner = rms(own, scaled.weight[i], 1e-4) if normed else own
            assert torch.allclose(scaled(states)[layer], scaled.scale[i] * inner + scaled.bias[i], atol=1e-5)


def test_the_output_map_starts_as_asked() -> None:
    connector = Connector(options_of("qp", connector_std=0.5), 1, DIM, 400, LAYOUT)
    mapper: Any = connector.maps[0]
    assert mapper.leave.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert not mapper.leave.bias.any()


def drawn_features(draws: Draws | None, rows: slice = slice(None)) -> Features:
    return Features(tokens_of()[rows, None].repeat(1, 2, 1, 1), torch.ones(4, dtype=torch.bool)[rows], draws)


def test_random_tokens_are_drawn_for_each_row_by_its_seed() -> None:
    layout, rows = TokenLayout(257, 1, (16, 16), "image"), (11, 12, 13)
    drawn = draw_tokens(layout, Draws(rows, 5))
    assert torch.equal(drawn, draw_tokens(layout, Draws(rows, 5))), "a resumed training draws the same"
    assert torch.equal(drawn[1:2], draw_tokens(layout, Draws(rows[1:2], 5))), "alone as in a batch"
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn, draw_tokens(layout, Draws(rows, 5, order=1))), "another medium of the row"
    for own in drawn:
        assert own[0] == 0, "[CLS] is always kept"
        assert own.tolist() == sorted(set(own.tolist())), "in order, each once"
    sizes = [draw_tokens(layout, Draws((1,), step)).shape[1] - 1 for step in range(600)]
    assert min(sizes) == 16
    assert max(sizes) == 128
    assert 0.05 < sizes.count(128) / 600 < 0.3
    assert 50 < sum(sizes) / 600 < 85


def test_random_tokens_in_a_training_batch_alone() -> None:
    connector = Connector(options_of("random-tokens", standardize=False), 2, DIM, HIDDEN, LAYOUT)
    whole, drawn = connector(drawn_features(None)), connector(drawn_features(Draws((1, 2, 3, 4), 9)))
    index = draw_tokens(LAYOUT, Draws((1, 2, 3, 4), 9))
    assert whole[0].shape[1] == LAYOUT.n_tokens > drawn[0].shape[1] == index.shape[1]
    for level in range(2):
        for row in range(4):
            assert torch.equal(drawn[level][row], whole[level][row, index[row]])
    assert connector.training, "without draws all tokens are used, also in training mode"
    other = Connector(options_of("linear", standardize=False), 2, DIM, HIDDEN, LAYOUT)
    assert torch.equal(other(drawn_features(Draws((1, 2, 3, 4), 9)))[0], other(drawn_features(None))[0])


def test_media_of_a_row_draw_apart() -> None:
    features = Features(torch.zeros(2, 3, 1, 18, DIM), torch.ones(2, 3, dtype=torch.bool), Draws((4, 5), 1))
    assert [one.draws for one in features.by_order()] == [Draws((4, 5), 1, order) for order in range(3)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mapper": "qpp"}, "qp"),
    ({"mapper_queries": 3}, "`mapper: linear` has no `mapper_queries`, which belongs to qp, attn-pool"),
    ({"mapper": "qp", "mapper_grid": 3}, "`mapper: qp` has no `mapper_grid`, which belongs to grid"),
    ({"mapper": "grid", "per_layer": "scale-bias", "mapper_eps": 1e-3, "tokens": "all"}, "has no `mapper_eps`"),
    ({"mapper": "low-rank"}, "needs its rank, `mapper_rank`"),
    ({"mapper": "attn-pool"}, "`tokens: all`"),
    ({"mapper": "grid"}, "`tokens: all`"),
    ({"mapper": "mlp", "connector_init": "answers"}, "fits linear maps"),
    ({"mapper": "random-tokens", "tokens": "all", "slot_positions": "sequential"}, "differs in number by step"),
    ({"mapper": "qp", "mapper_queries": 0}, "greater than or equal to 1"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_keys_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        InjectionOptions(**given)


def test_mappers_that_do_not_fit_the_encoder_are_refused() -> None:
    stripes = replace(LAYOUT, grid=None, modality="audio")
    for kind in ("grid", "space-to-depth", "group-qp"):
        with pytest.raises(UserError, match=rf"{kind} is for patches in rows and columns, and the audio encoder's"):
            mapper_of(kind, stripes)
    with pytest.raises(UserError, match=r"mapper_group is 3, but .* 4 x 4 patches .* a side of 1, 2, 4 only"):
        mapper_of("group-mean", mapper_group=3)
    with pytest.raises(UserError, match=r"mapper_grid is 5, but .* only 4 x 4 patches"):
        mapper_of("grid", mapper_grid=5)
    with pytest.raises(UserError, match=r"mapper_heads: a width of 9 cannot be divided by 2"):
        mapper_of("qp", mapper_width=9)


def test_shared_mappers_take_every_level() -> None:
    connector = Connector(options_of("qp", shared_connector=True, standardize=False), 2, DIM, HIDDEN, LAYOUT)
    assert len(connector.maps) == 1
    one, other = connector(drawn_features(None))
    assert torch.equal(one, other)
    apart = Connector(options_of("qp", standardize=False), 2, DIM, HIDDEN, LAYOUT)
    assert len(apart.maps) == 2
    assert isinstance(apart.maps, nn.ModuleList)
