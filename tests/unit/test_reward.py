"""The reward stage: its loss by hand, what a step does to answers, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.config.objective import RewardConfig
from perceptune.data.build_task import make_task
from perceptune.data.metrics.base import DocumentFrequencies
from perceptune.data.metrics.caption import Options, score
from perceptune.errors import UserError
from perceptune.lm.kernels.linear_cross_entropy import frozen_head_loss
from perceptune.models.base import AdaptedModel
from perceptune.models.slots.model import SlotModel
from perceptune.models.text_format import Batch
from perceptune.training.batch_loader import BatchLoader
from perceptune.training.reward import CiderReward, SelfCritical, advantages, make_objective
from perceptune.types import Sample
from perceptune.utils.distributed import World
from runs import recipe, same, stop_after, tensors
from support import train_section

REWARD = {"kind": "reward", "samples": 3}
CAPTIONS = ["a red thing on grass", "some red thing", "green and blue things", "a picture of gray", "it is blue"]
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "lora_dropout": 0.3, "target_modules": ["q_proj"],
        "layers_to_transform": "injected"}  # fmt: skip
LORA = {"name": "lora", "n_levels": 2, "first": None, "last": None, "peft": PEFT}


@pytest.fixture(scope="module")
def captions(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe for captions: each picture has two in one row, and a third in another row."""
    folder = tmp_path_factory.mktemp("captions")
    support.save_data(folder, rows=6)
    rows = [
        {"image": f"train{i}.png", "targets": [CAPTIONS[(i + k) % 5] for k in own]}
        for i in range(6) for own in ((0, 1), (2,))
    ]  # fmt: skip
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", folder / "captions.jsonl", method=LORA)
    given["task"] |= {"metric": "CIDEr", "group_rows": False}
    return {**given, "text": {"template": "a photo of"}, "decode": {"max_new_tokens": 5}}


@pytest.fixture(scope="module")
def start(captions: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that stages go on from."""
    run = tmp_path_factory.mktemp("start") / "run"
    perceptune.train({**captions, "train": train_section(steps=2)}, run)
    return run


def staged(captions: dict[str, Any], start: Path, **train: Any) -> dict[str, Any]:
    given = {"objective": REWARD, **train}
    return {**captions, "init_from": str(start), "train": train_section(**given)}


def loaded(given: dict[str, Any], folder: Path) -> tuple[AdaptedModel, BatchLoader]:
    model = perceptune.build(given)
    model.setup(training=True)
    return model, BatchLoader(model, make_task(model.recipe), folder, World())


def objective_of(given: dict[str, Any], folder: Path, reward: Any = None) -> tuple[SelfCritical, list[Batch]]:
    """The objective of a recipe, rewarding by hand, and its first step's batches."""
    model, loader = loaded(given, folder)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    made = make_objective(model, make_task(model.recipe), loader.samples, World())
    assert isinstance(made, SelfCritical)
    if reward is not None:
        made.score = reward
    return made, [batch for batch in loader.batches(0) if batch is not None]


def longer_is_better(_: Sample, texts: list[str]) -> list[float]:
    return [len(text) + text.count("a") / 7 for text in texts]


def logprobs(model: SlotModel, batch: Batch) -> list[Tensor]:
    """The log-probability of each row's supervised tokens, from the logits."""
    tokens = batch.tokens
    aims = tokens.input_ids[:, 1:][tokens.supervised[:, 1:]]
    every = model.forward(batch).float().log_softmax(-1).gather(1, aims[:, None])[:, 0]
    return list(every.split(tokens.supervised[:, 1:].sum(1).tolist()))


def test_an_advantage_is_over_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1]], dtype=torch.float64)
    found = advantages(rewards)
    assert found[0].tolist() == [1 - 4, 2 - 3.5, 6 - 1.5]
    assert found[1].tolist() == [0, 0, 0], "equal answers teach nothing, not even by rounding"


def test_the_reward_is_the_metric_s(tmp_path: Path) -> None:
    """Against all references of the medium, from whatever row; media and prompts are told apart."""
    given = (("a", "", ("a red dog", "one dog")), ("b", "", ("a cat",)), ("a", "", ("the dog runs", "one dog")),
             ("a", "?", ("x",)))  # fmt: skip
    rows = [Sample(str(i), {"image": image}, prompt, targets) for i, (image, prompt, targets) in enumerate(given)]
    documents = [["a red dog", "one dog", "the dog runs"], ["a cat", "a dog"], ["a man"]]
    reward = CiderReward(rows, DocumentFrequencies.count(documents))
    texts = ["a dog", "the dog runs", ""]
    found = reward(rows[2], texts)
    file = tmp_path / "df.jsonl"
    file.write_text("".join(json.dumps({"references": own}) + "\n" for own in documents))
    whole = score(texts[:2], [documents[0]] * 2, Options(df=str(file), tokenizer="ptb"))
    assert found == [*(pytest.approx(row["CIDEr"]) for row in whole.per_sample), 0.0]
    assert found[1] > found[0] > 0
    assert reward(rows[0], texts) == found
    assert reward(rows[3], ["x"]) != reward(rows[0], ["x"])


@pytest.mark.parametrize("ce", [0.0, 0.3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_is_the_one_written_down(
    captions: dict[str, Any], start: Path, tmp_path: Path, ce: float, accumulate: int
) -> None:
    given = staged(captions, start, objective={**REWARD, "ce": ce}, accumulate=accumulate)
    made, batches = objective_of(given, tmp_path, longer_is_better)
    model, trained = made.model, [p for p in made.model.method.parameters() if p.requires_grad]
    torch.manual_seed(3)
    losses, tokens, samples = made.add_gradients(batches)
    own = [None if p.grad is None else p.grad / tokens for p in trained]
    model.method.zero_grad()

    drawn = [made.draw(batch) for batch in batches]
    total, length = torch.zeros(()), 0
    for (batch, rewards), _ in zip(drawn, batches, strict=True):
        rows = logprobs(model, batch)  # type: ignore[arg-type]
        length += sum(map(len, rows))
        for row, own_rows in enumerate(zip(*[iter(rows)] * 3, strict=True)):
            for k, answer in enumerate(own_rows):
                others = [float(rewards[row, j]) for j in range(3) if j != k]
                total = total - (float(rewards[row, k]) - sum(others) / 2) * answer.sum()
    expected = total / length
    if ce:
        torch.manual_seed(3)
        model.set_dropout(on=True)
        entropies = [-row.sum() for batch in batches for row in logprobs(model, batch)]  # type: ignore[arg-type]
        model.set_dropout(on=False)
        expected = expected + ce * sum(entropies) / sum(batch.n_tokens for batch in batches)
    expected.backward()
    assert (tokens, samples) == (length, 2 * accumulate)
    assert float(sum(losses)) / tokens == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    for parameter, gradient in zip(trained, own, strict=True):
        assert (gradient is None) == (parameter.grad is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, parameter.grad, rtol=2e-3, atol=1e-5)
    assert made.values["reward"] == pytest.approx(float(torch.cat([r for _, r in drawn]).mean()), abs=1e-5)


def test_one_step_makes_the_better_answer_likelier(captions: dict[str, Any], start: Path, tmp_path: Path) -> None:
    given = staged(captions, start, objective={**REWARD, "samples": 2, "ce": 0})
    made, batches = objective_of(given, tmp_path, longer_is_better)
    batch, rewards = made.draw(batches[0])
    before = [row.sum().item() for row in logprobs(made.model, batch)]
    made.add_gradients(batches)
    with torch.no_grad():
        for parameter in made.model.method.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    after = [row.sum().item() for row in logprobs(made.model, batch)]
    margins = [0.0, 0.0]
    for when, values in enumerate((before, after)):
        for row, (one, other) in enumerate(zip(values[::2], values[1::2], strict=True)):
            sign = float((rewards[row, 0] - rewards[row, 1]).sign())
            margins[when] += sign * (one - other)
    assert bool((rewards[:, 0] != rewards[:, 1]).any())
    assert margins[1] > margins[0]


def test_answers_depend_on_the_sample_and_epoch_and_their_end_counts(
    captions: dict[str, Any], start: Path, tmp_path: Path
) -> None:
    made, batches = objective_of(staged(captions, start), tmp_path, longer_is_better)
    eos, limit = made.model.text.eos, made.decoding.max_new_tokens
    [batch] = batches
    first, again = made.draw(batch)[0], made.draw(batch)[0]
    assert torch.equal(first.tokens.input_ids, again.tokens.input_ids)
    other = made.draw(Batch(batch.tokens, batch.features, batch.samples, tuple(seed + 1 for seed in batch.seeds)))[0]
    assert first.tokens.input_ids.tolist() != other.tokens.input_ids.tolist()
    lengths = first.tokens.supervised.sum(1).tolist()
    ends = first.tokens.input_ids[:, -1].tolist()
    assert all((end == eos) == (length < limit) or length == limit for end, length in zip(ends, lengths, strict=True))
    assert first.weights is not None
    assert len(first.weights) == sum(lengths)
    assert made.draw(batch)[0].features["image"].draws is None


def test_a_weighted_loss_of_a_frozen_head() -> None:
    torch.manual_seed(0)
    head, states = nn.Linear(8, 30).requires_grad_(False), torch.randn(7, 8, requires_grad=True)
    targets, weights = torch.randint(30, (7,)), torch.randn(7)
    loss = frozen_head_loss(states, head, targets, weights)
    [own] = torch.autograd.grad(loss, states)
    plain = nn.functional.cross_entropy(head(states), targets, reduction="none") @ weights
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(own, torch.autograd.grad(plain, states)[0])


def test_a_stage_resumes_with_the_same_bits_and_is_named(
    captions: dict[str, Any], start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = staged(captions, start, freeze=["connectors"])
    perceptune.train(given, tmp_path / "whole")
    stop_after(given, tmp_path / "parts", steps=3)
    perceptune.train(None, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    before, after = tensors(start), tensors(tmp_path / "whole")
    assert {name.partition(".")[0] for name in before if torch.equal(before[name], after[name])} >= {"connectors"}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    steps = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert all({"reward", "answer_tokens"} <= row.keys() for row in steps if row["event"] == "step")
    meta = json.loads((tmp_path / "whole/meta.json").read_text())
    assert meta["objective"] == RewardConfig(**REWARD).model_dump()  # type: ignore[arg-type]
    assert cli(["eval", str(tmp_path / "whole"), "--samples", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "trained by reward: 3 sampled answers a step, rewarded by CIDEr-D" in printed
    assert json.loads((tmp_path / "whole/results.json").read_text())["objective"] == meta["objective"]
    assert "rained by reward" in (tmp_path / "whole/README.md").read_text()
    assert "objective" not in json.loads((start / "meta.json").read_text())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_from": None}, "train.objective: a reward stage goes on from a trained run: name it by `init_from`"),
        ({"metric": "accuracy"}, "the reward CIDEr-D is for captions, and the metric of the task is `accuracy`"),
        ({"targets": []}, "`targets` is empty"),
        ({"objective": {"kind": "reward", "samples": 1}}, r"train\.objective\.samples"),
        ({"objective": {"kind": "reward", "kl": 0.1}}, r"train\.objective\.kl"),
        ({"objective": {"kind": "rewards"}}, r"train\.objective\.kind"),
    ],
)  # fmt: skip
def test_what_cannot_be_rewarded_is_refused(
    captions: dict[str, Any], start: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    given = staged(captions, start, **({"objective": changes["objective"]} if "objective" in changes else {}))
    if "init_from" in changes:
        given["init_from"] = None
    if "metric" in changes:
        given["task"] = {**given["task"], "metric": "accuracy", "prompt": "what?"}
    if "targets" in changes:
        lines = Path(given["task"]["train"]).read_text().replace('["it is blue"]', "[]")
        (tmp_path / "c.jsonl").write_text(lines.replace('"train', f'"{Path(given["task"]["train"]).parent}/train'))
        given["task"] = {**given["task"], "train": str(tmp_path / "c.jsonl")}
    with pytest.raises(UserError, match=said):
        perceptune.train(given, tmp_path / "run")


def test_cross_entropy_is_as_before(dwarfs: Path, tmp_path: Path) -> None:
    made = make_objective(*_plain(dwarfs, tmp_path))
    assert not isinstance(made, SelfCritical)
    assert made.values == {}


def _plain(dwarfs: Path, folder: Path) -> tuple[AdaptedModel, Any, Any, World]:
    model, loader = loaded(recipe(dwarfs), folder)
    return model, make_task(model.recipe), loader.samples, World()
