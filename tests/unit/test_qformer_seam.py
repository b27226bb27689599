"""What a method on a Q-Former may do: PEFT's layers, modules of its own, several instructions, a loss of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

import blips
import perceptune
from perceptune.config.recipe import load_recipe
from perceptune.config.registry import leaf
from perceptune.errors import UserError
from perceptune.methods.qformer.base import (
    FrozenBlip,
    Instruction,
    QFormerMethod,
    QFormerOptions,
    QFormerOutput,
    Site,
    TrainingPass,
    wrapped,
)
from perceptune.models.instructblip.build import build_instructblip
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.types import Sample

ATTENTION = r".*attention\.attention\.(query|key|value)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blips.save_all(tmp_path_factory.mktemp("blips"), ("t5", "llama"))


class Example(QFormerMethod):
    """LoRA, a gate on the pooled instruction that moves text positions only, two passes, more queries, a loss."""

    def __init__(self, options: QFormerOptions, blip: FrozenBlip) -> None:
        super().__init__(options, blip)
        self.lora, peft_model = wrapped(blip, LoraConfig(r=2, target_modules=ATTENTION, lora_dropout=0.5))
        self.__dict__["peft_model"] = peft_model
        self.gate = nn.Linear(blip.hidden_size, blip.hidden_size)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.extra = nn.Parameter(torch.zeros(1, 2, blip.hidden_size))
        self.seen: TrainingPass | None = None
        self._mask: Tensor | None = None

    def attach(self, blip: FrozenBlip) -> None:
        def gated(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
            assert self._mask is not None
            n = embedded.shape[1] - self._mask.shape[1]
            text, mask = embedded[:, n:], self._mask[..., None]
            pooled = (text * mask).sum(1) / mask.sum(1)
            return torch.cat([embedded[:, :n], text + self.gate(pooled)[:, None]], dim=1)

        blip.qformer.embeddings.register_forward_hook(gated)

    def instructions(self, text: str) -> Sequence[str]:
        return (text, "what color")

    def queries(self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction]) -> QFormerOutput:
        passes = []
        for one in instructions:
            self._mask = one.mask
            asked = torch.cat([blip.query_tokens, self.extra], dim=1)
            passes.append(blip.run_qformer(asked, one, image)[:, : blip.n_queries])
        return QFormerOutput(torch.stack(passes).mean(0))

    def aux_loss(self, blip: FrozenBlip, seen: TrainingPass) -> Tensor | None:
        self.seen = seen
        return seen.output.queries.mean().square()

    def sites(self) -> list[Site]:
        return [Site(0, "everywhere", "example")]


def built(folder: Path, kind: str, method: type[QFormerMethod] = Example) -> InstructBlipModel:
    given = load_recipe(blips.recipe(folder / kind, cache={"features": "memory"}))
    return build_instructblip(given, make_method=partial(method, QFormerOptions()))


def samples(folder: Path) -> list[Sample]:
    rows = [("color?", "red"), ("what color is this picture?", "blue")]
    return [Sample(str(i), {"image": folder / f"data/train{i}.png"}, q, (a,)) for i, (q, a) in enumerate(rows)]


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_all_of_it_at_once(folder: Path, kind: str) -> None:
    model, rows = built(folder, kind), samples(folder)
    frozen = {key: p.clone() for key, p in model.blip.named_parameters() if not p.requires_grad}
    loss, n = model.loss(model.collate(rows))
    method = cast(Example, model.method)
    assert method.seen is not None, "the loss of its own is part of every training pass"
    loss.backward()
    grads = {key: p.grad for key, p in method.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    assert grads["gate.weight"] is not None
    assert float(grads["gate.weight"].abs().max()) > 0
    assert any(key.startswith("lora.") for key in grads)
    seen = method.seen
    assert seen.image.shape == (2, 5, 24)
    assert [one.ids.shape[0] for one in seen.instructions] == [2, 2]
    assert seen.target_ids.shape == seen.target_mask.shape
    assert int(seen.target_mask.sum()) == n
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    assert all(torch.equal(frozen[key], p) for key, p in model.blip.named_parameters() if key in frozen)
    together = model.answer(rows)
    assert together == [model.answer([one])[0] for one in rows]


def test_the_method_s_own_loss_is_weighted_by_the_tokens(folder: Path) -> None:
    class Constant(Example):
        def aux_loss(self, blip: FrozenBlip, seen: TrainingPass) -> Tensor | None:
            return super().aux_loss(blip, seen) * 0 + 7  # type: ignore[operator]

    rows = samples(folder)
    model = built(folder, "t5", Constant)
    with torch.no_grad():
        model.method.eval()
        plain, n = model.loss(model.collate(rows))
        model.method.train()
        loss, _ = model.loss(model.collate(rows))
    assert float(loss - plain) == pytest.approx(7 * n)


def test_dropout_of_peft_acts_without_that_of_the_q_former(folder: Path) -> None:
    model, rows = built(folder, "llama"), samples(folder)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(0.1)
    model.method.options = QFormerOptions(dropout=False)
    batch = model.collate(rows)

    def two() -> set[float]:
        return {float(model.blip.loss(model.query(rows).queries, batch.tokens.for_lm(model.device))[0].detach())  # type: ignore[attr-defined]
                for _ in range(2)}  # fmt: skip

    model.set_dropout(on=True)
    assert len(two()) == 2
    assert not model.blip.qformer.embeddings.dropout.training
    model.set_dropout(on=False)
    assert len(two()) == 1


def test_peft_may_not_train_the_q_former_s_own_weights(folder: Path) -> None:
    head = leaf("qformer_methods", "head").module.METHOD
    for config, message in (
        (LoraConfig(r=2, target_modules=ATTENTION, bias="all"), "weights of the Q-Former itself"),
        (LoraConfig(r=2, target_modules="nothing"), "PEFT refuses"),
    ):
        blip = build_instructblip(
            load_recipe(blips.recipe(folder / "llama")), make_method=partial(head, head.Options())
        ).blip
        blip.requires_grad_(False)
        with pytest.raises(UserError, match=message):
            wrapped(blip, config)


def test_a_run_goes_through_the_loop_and_comes_back(folder: Path, tmp_path: Path) -> None:
    given = blips.recipe(folder / "t5", folder / "data/train.jsonl", method="head", eval={"every": 3})
    result = perceptune.train(given, tmp_path / "run")
    assert result.steps == 6
    scores = perceptune.evaluate(tmp_path / "run", control=True)
    assert {"accuracy", "accuracy_shuffled", "gap"} <= set(scores)
    model, rows = perceptune.load(tmp_path / "run"), samples(folder)
    assert model.answer(rows) == perceptune.load(tmp_path / "run").answer(rows)
    again = perceptune.train(given, tmp_path / "again", overrides=["eval.every=3"])
    for name in ("method.safetensors",):
        assert (again.run / name).read_bytes() == (result.run / name).read_bytes()
    with torch.no_grad():
        other = blips.save_blip(tmp_path / "other", "t5")
        changed = blips.random_blip("t5")
        changed.language_projection.weight.add_(1)
        changed.save_pretrained(other)
    text = (tmp_path / "run/run.yaml").read_text().replace(str(folder / "t5"), str(other))
    (tmp_path / "run/run.yaml").write_text(text)
    with pytest.raises(UserError, match="another base model"):
        perceptune.load(tmp_path / "run")
