"""What PETAL promises beside what every method on a Q-Former does, on tiny InstructBLIPs.

pytest tests/contract/test_petal.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import blips
import perceptune
from perceptune.errors import UserError
from perceptune.lm.frozen_blip import Instruction
from perceptune.methods.qformer.base import ExpertsOptions, GatedExperts
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.run_folder import load_method, write_tensors
from perceptune.training.optimizer import MethodOptimizer
from perceptune.types import Sample
from perceptune.utils.run_log import read_log
from runs import same, stop_after

READ = ["what color?", "is this?"]
SMALL: dict[str, Any] = {"name": "petal", "dma": {"r": 4}, "sib": {"hidden": 8, "size": 4}, "instructions": READ}
every_lm = pytest.mark.parametrize("kind", ["t5", "llama"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blips.save_all(tmp_path_factory.mktemp("blips"), ("t5", "llama", "blip2-t5"))


def recipe(folder: Path, kind: str = "t5", **method: Any) -> dict[str, Any]:
    return blips.recipe(folder / kind, method={**SMALL, **method}, cache={"features": "memory"})


def built(folder: Path, kind: str = "t5", *, far: bool = False, **method: Any) -> InstructBlipModel:
    """In evaluation mode; `far` from the neutral start on demand."""
    model = cast(InstructBlipModel, perceptune.build(recipe(folder, kind, **method)))
    model.set_dropout(on=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.method.parameters() if far else ():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def samples(folder: Path) -> list[Sample]:
    rows = [("color?", "red"), ("what color is this picture?", "blue"), ("is this a picture?", "y")]
    return [Sample(str(i), {"image": folder / f"data/train{i}.png"}, q, (a,)) for i, (q, a) in enumerate(rows)]


def loss_of(model: InstructBlipModel, rows: Sequence[Sample]) -> Tensor:
    return model.loss(model.collate(rows))[0].detach()


@every_lm
@pytest.mark.parametrize("read", [[], READ])
def test_at_the_start_it_is_the_bare_model(folder: Path, kind: str, read: list[str]) -> None:
    """With the same text read by the Q-Former; to the rounding, for maps that are computed together round otherwise."""
    rows, petal = samples(folder), built(folder, kind, instructions=read)
    bare = cast(InstructBlipModel, perceptune.build(blips.recipe(folder / kind, cache={"features": "memory"})))
    bare.text.instructions = lambda text: (" ".join([*read, text]),)  # type: ignore[attr-defined]
    bare.set_dropout(on=False)
    torch.testing.assert_close(loss_of(petal, rows), loss_of(bare, rows), rtol=2e-6, atol=0)
    assert petal.answer(rows) == bare.answer(rows)


def test_the_experts_change_text_and_nothing_else(folder: Path) -> None:
    model = built(folder, far=True, dma=None, sib=None)
    seen: list[Tensor] = []
    model.blip.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.query(samples(folder))
    with torch.no_grad():
        for expert in cast(GatedExperts, model.method.experts).experts:
            expert.up.weight.zero_()
            expert.up.bias.zero_()
    model.query(samples(folder))
    n = model.blip.n_queries
    assert torch.equal(seen[0][:, :n], seen[1][:, :n])
    assert not torch.equal(seen[0][:, n:], seen[1][:, n:])


def test_the_gate_hears_tokens_and_no_padding() -> None:
    torch.manual_seed(0)
    experts = GatedExperts(4, ExpertsOptions(n=3, width=2))
    text, mask = torch.randn(1, 5, 4), torch.tensor([[1, 1, 1, 0, 0]])
    gates = experts.gates(text, mask).detach()
    assert torch.allclose(gates, experts.gates(text[:, :3], mask[:, :3]))
    assert float(gates.sum()) == pytest.approx(1)
    assert experts.gate is not None
    assert torch.allclose(gates, (text[:, :3].mean(1) @ experts.gate.weight.T).softmax(-1))


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_so_many_experts_act(top_k: int | None) -> None:
    torch.manual_seed(0)
    experts = GatedExperts(4, ExpertsOptions(n=3, width=2, top_k=top_k))
    with torch.no_grad():
        for i, expert in enumerate(experts.experts):
            expert.up.bias.fill_(10.0**i)  # type: ignore[union-attr]
    text, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.long)
    enhanced, gates = experts(text, mask)
    acting = gates if top_k is None else gates * (gates >= gates.topk(top_k).values[:, -1:])
    added = (acting * torch.tensor([1.0, 10, 100])).sum(-1)
    assert torch.allclose(enhanced - text, added[:, None, None].expand(2, 5, 4), rtol=1e-4, atol=1e-4)
    enhanced.sum().backward()
    assert experts.gate is not None
    assert float(cast(Tensor, experts.gate.weight.grad).abs().max()) > 0, "with one expert, too"


def test_the_balancing_loss_is_least_where_experts_are_used_alike() -> None:
    for top_k in (None, 1):
        experts = GatedExperts(4, ExpertsOptions(n=3, width=2, top_k=top_k))
        alike = torch.eye(3) * 0.97 + 0.01
        assert float(experts.balance(alike)) == pytest.approx(1)
        assert float(experts.balance(alike[:1].expand(3, 3))) > 2.8
    # What a softmax favours counts in full, however little it is favoured.
    assert float(experts.balance(torch.tensor([[0.4, 0.3, 0.3]]))) == pytest.approx(3 * 0.4)


def test_balance_is_part_of_the_loss_while_training(folder: Path) -> None:
    rows = samples(folder)
    losses = []
    for balance in (0.0, 0.5):
        model = built(folder, sib=None, dma=None, experts={"balance": balance, "n": 2})
        model.method.options = model.method.options.model_copy(update={"dropout": False})
        model.set_dropout(on=True)
        loss, n = model.loss(model.collate(rows))
        losses.append(float(loss.detach()) / n)
    assert losses[1] - losses[0] == pytest.approx(0.5, abs=0.3)  # 0.5 times a value from 1 to 2
    assert losses[1] - losses[0] >= 0.4999


def test_several_passes_are_their_mean(folder: Path) -> None:
    rows, model = samples(folder), built(folder, far=True, mode="multi_pass")
    alone = [built(folder, far=True, instructions=[one]).query(rows).queries for one in READ]
    assert torch.allclose(model.query(rows).queries, torch.stack(alone).mean(0), atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_random_instructions_are_drawn_once_and_kept_in_the_run(folder: Path, tmp_path: Path) -> None:
    def ids(seed: int) -> Tensor:
        given = {**recipe(folder, random_instructions=[3, 5]), "seed": seed}
        return cast(InstructBlipModel, perceptune.build(given)).method.get_buffer("random_ids")

    half = len(blips.WORDS) // 2
    assert torch.equal(ids(0), ids(0))
    assert not torch.equal(ids(0), ids(1))
    assert int(ids(0)[:3].max()) < half <= int(ids(0)[3:].min())
    model, read = built(folder, random_instructions=[3, 5]), list[Instruction | None]()
    run = model.blip.run_qformer
    model.blip.run_qformer = lambda q, i, x: (read.append(i), run(q, i, x))[1]  # type: ignore[method-assign]
    model.query(samples(folder)[:1])
    [one] = cast(list[Instruction], read)
    assert torch.equal(one.ids[0, 1:9], ids(0))
    assert one.ids[0, [0, -1]].tolist() == [2, 3], "[CLS] in front, [SEP] behind"
    other = cast(InstructBlipModel, perceptune.build({**recipe(folder, random_instructions=[3, 5]), "seed": 1}))
    write_tensors(tmp_path / "m.safetensors", model.method.state_dict())
    load_method(tmp_path / "m.safetensors", other)
    assert torch.equal(other.method.get_buffer("random_ids"), ids(0))
    with pytest.raises(UserError, match="positions"):
        built(folder, random_instructions=[20]).query(samples(folder))


@pytest.mark.parametrize("estimator", [{}, {"upper": "leave_one_out"}])
def test_estimators_learn_and_are_no_part_of_the_method(folder: Path, estimator: dict[str, Any]) -> None:
    model = built(folder, sib={**estimator, "hidden": 8, "size": 4})
    plain = built(folder, sib=None)
    assert model.method.state_dict().keys() == plain.method.state_dict().keys()
    assert sum(p.numel() for p in model.method.parameters()) == sum(p.numel() for p in plain.method.parameters())
    optimizer = MethodOptimizer(model.method, model.recipe.train, 10)
    beside = {name: p.detach().clone() for name, p in optimizer.auxiliary.items()}
    assert beside
    # A last bias adds the same to both sides of a difference: whether it moves is a matter of rounding.
    moving = {name for name in beside if not name.endswith("judge.2.bias")}
    still = set(moving)
    for step in range(3):
        optimizer.set_lr(step)
        model.set_dropout(on=True)
        loss, n = model.loss(model.collate(samples(folder)))
        (loss / n).backward()
        still -= {name for name, p in optimizer.auxiliary.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step(step)
    assert still == set()
    assert [name for name in moving if torch.equal(optimizer.auxiliary[name], beside[name])] == []
    assert model.method.to(torch.float64) is model.method
    assert {p.dtype for p in optimizer.auxiliary.values()} == {torch.float64}, "they go where the method goes"


def test_the_bottleneck_is_in_the_loss_of_training_and_in_no_other(folder: Path) -> None:
    rows, values = samples(folder), {}
    for alpha in (0.0, 0.1, 0.2):
        model = built(
            folder, far=True, dropout=False, dma={"r": 4, "dropout": 0.0}, sib={**SMALL["sib"], "alpha": alpha}
        )
        evaluated, n = model.loss(model.collate(rows))
        model.set_dropout(on=True)
        trained, _ = model.loss(model.collate(rows))
        values[alpha] = float((trained - evaluated).detach()) / n
        one, _ = model.loss(model.collate(rows[:1]))
        model.set_dropout(on=False)
        assert float(one.detach()) == pytest.approx(float(loss_of(model, rows[:1])), rel=1e-6), "one row has no term"
    assert values[0.0] == pytest.approx(0, abs=1e-6), "fitting q is a gradient without a value"
    assert abs(values[0.1]) > 1e-4
    assert values[0.2] == pytest.approx(2 * values[0.1], rel=1e-3)


@every_lm
def test_a_stopped_training_goes_on_with_its_estimators(folder: Path, tmp_path: Path, kind: str) -> None:
    given = recipe(folder, kind, experts={"top_k": 1, "balance": 0.01})
    given |= {"task": {"name": "jsonl", "train": str(folder / "data/train.jsonl")}}
    perceptune.train(given, tmp_path / "whole")
    stop_after(given, tmp_path / "parts", steps=3)
    perceptune.train(None, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    files = [next((tmp_path / run).glob("checkpoints/*/optimizer.safetensors")) for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    logged = [[row["loss"] for row in read_log(tmp_path / run) if row["event"] == "step"] for run in ("whole", "parts")]
    assert logged[0] == logged[1]
    rows = samples(folder)
    assert perceptune.load(tmp_path / "whole").answer(rows) == perceptune.load(tmp_path / "parts").answer(rows)


@every_lm
def test_merged_it_answers_the_same(folder: Path, kind: str) -> None:
    rows, model = samples(folder), built(folder, kind, far=True)
    before, answers = loss_of(model, rows), model.answer(rows)
    weights = [p.clone() for p in model.blip.parameters()]
    model.method.peft_model.merge_adapter()
    assert not all(torch.equal(a, b) for a, b in zip(weights, model.blip.parameters(), strict=True))
    assert torch.allclose(loss_of(model, rows), before, rtol=1e-4)
    assert model.answer(rows) == answers
    model.method.peft_model.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(weights, model.blip.parameters(), strict=True))


def test_the_released_parts_are_their_formulas(folder: Path) -> None:
    model = built(folder, name="petal-released", far=True, dma=None, sib=None, experts={"n": 2, "form": "released"})
    experts, states = model.method.experts, torch.randn(2, 4, blips.WIDTH)
    mean = (
        sum(states @ (e[1].weight @ e[0].weight).T + e[1].weight @ e[0].bias + e[1].bias for e in experts.experts) / 2
    )
    assert torch.allclose(experts(states), 0.6 * states + 0.4 * mean, atol=1e-5)
    layer, transform = model.blip.layers[1], model.method.query_transform
    outputs: list[Tensor] = []
    layer.attention.register_forward_hook(lambda _, __, out: outputs.append(out))
    layer.output_query.register_forward_hook(lambda _, __, out: outputs.append(out))
    layer.register_forward_hook(lambda _, __, out: outputs.append(out))
    model.query(samples(folder))
    n = model.blip.n_queries
    attended, plain, given = (one[:, :n] for one in outputs)
    expected = plain + 0.1 * (attended * transform.scale[1] + transform.shift[1])
    assert torch.allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"dma": None, "experts": None}, "nothing to train"),
        ({"experts": {"n": 2, "top_k": 3}}, "there are 2 experts"),
        ({"experts": {"form": "released", "balance": 0.1}}, "no gate"),
        ({"dma": {"rank": 3}}, "unknown key `dma.rank`"),
        ({"sib": {"y": "answer"}}, "sib.y"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, method: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(folder, **method)


def test_a_q_former_that_reads_nothing_has_dma_and_the_bottleneck_only(folder: Path) -> None:
    for method in ({}, {"experts": None, "random_instructions": [3]}, {"experts": None, "sib": {"y": "instruction"}}):
        with pytest.raises(UserError, match="reads no instruction"):
            built(folder, "blip2-t5", **method)
    assert built(folder, "blip2-t5", experts=None).answer(samples(folder))
