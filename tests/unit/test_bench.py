"""The bench compares equals, counts what it says it counts, and prints what it promises."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import shapes
from benchmarks.__main__ import run
from benchmarks.compare import METHODS, NAMES, PARTS, RATIOS, Comparison, compare
from benchmarks.default import FAST, PLAIN, compare_paths, compare_precisions
from benchmarks.literal import LiteralEPALM
from benchmarks.plan import ASSUMED, MEASURED, Assumptions, Costs, plan
from benchmarks.report import markdown
from benchmarks.roofline import Product, Work, attention_flops, flops, products, roofline_seconds, work_of
from benchmarks.scaling import depth_rows
from benchmarks.shapes import Models, Setting, random_texts
from benchmarks.steps import training_step
from perceptune.config.recipe import load_recipe
from perceptune.models.text_format import Batch
from perceptune.utils.timing import Contender, measure

SETTING = Setting(batch=3, text=9, supervised=3, new_tokens=6)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models("tiny", SETTING)


@pytest.fixture(scope="module")
def comparison(models: Models) -> Comparison:
    """With trained parts far from their start, in ours and in the copies of the literal method."""
    made = Comparison(models)
    for name in METHODS:
        own, copied = models.ours(name, torch.float32).method, made.literal[name]
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
            for parameter, source in zip(copied.trained(), trained_in_order(own), strict=True):
                parameter.copy_(source)
    return made


def trained_in_order(method: Any) -> list[torch.nn.Parameter]:
    parts = [method.connectors["image"].maps] + ([] if method.prompt is None else [method.prompt])
    return [parameter for part in parts for parameter in part.parameters()]


def losses(comparison: Comparison, name: str, tokens: Any) -> tuple[torch.Tensor, torch.Tensor, LiteralEPALM]:
    literal, ours = comparison.literal[name], comparison.models.ours(name, torch.float32)
    given, n = literal.loss(tokens, literal.encode(comparison.models.images))
    own, m = ours.loss(Batch(tokens, {"image": comparison.models.features}))
    assert n == m == SETTING.batch * SETTING.supervised
    return given / n, own / m, literal


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ragged", [False, True])
def test_the_literal_loss_is_ours(comparison: Comparison, name: str, ragged: bool) -> None:
    tokens = random_texts(SETTING, comparison.models.vocabulary, seed=8, ragged=ragged)
    given, own, _ = losses(comparison, name, tokens)
    torch.testing.assert_close(given, own, atol=1e-5, rtol=0)
    other = -comparison.models.features.values
    moved, n = comparison.literal[name].loss(tokens, other)
    assert abs(float((moved / n - given).detach())) > 1e-3  # the image matters


@pytest.mark.parametrize("name", METHODS)
def test_the_literal_gradient_is_ours(comparison: Comparison, name: str) -> None:
    given, own, literal = losses(comparison, name, comparison.models.tokens)
    theirs = torch.autograd.grad(given, literal.trained())
    ours = torch.autograd.grad(own, trained_in_order(comparison.models.ours(name, torch.float32).method))
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("beams", [1, 3])
def test_literal_generation_gives_our_tokens(comparison: Comparison, beams: int) -> None:
    ways = comparison.generators(beams)
    ours = ways["ours epalm *"](6)
    assert ways["literal epalm *"](6).tolist() == ours
    assert ways["text-only *"](6).tolist() != ours  # the image and the prompt matter
    assert ways["peft prompt-tuning *"](6).shape == (SETTING.batch, 6)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_literal_search_is_that_of_transformers(models: Models, beams: int) -> None:
    """Without image and prompt the literal method is the bare LM."""
    comparison = Comparison(models)
    bare = comparison.literal["epalm-lin"]
    bare.range = range(0)
    tokens = models.tokens
    found = bare.generate(tokens.input_ids, tokens.attention_mask, models.features.values, 6, beams)
    assert found.tolist() == comparison.generators(beams)["text-only *"](6).tolist()


def test_prompt_tuning_trains_its_vectors_alone(comparison: Comparison) -> None:
    tuning = comparison.tuning
    assert [tuple(p.shape) for p in tuning.trained()] == [(10, 32)]
    tuning.loss(comparison.models.tokens).backward()
    assert tuning.trained()[0].grad is not None
    assert all(p.grad is None for p in comparison.models.raw_lm.parameters() if not p.requires_grad)


def test_a_training_step_trains(models: Models) -> None:
    model = models.ours("epalm", torch.bfloat16)
    batch = Batch(models.tokens, {"image": models.features})

    def loss() -> torch.Tensor:
        total, tokens = model.loss(batch)
        return total / tokens

    before = [p.detach().clone() for p in model.method.parameters()]
    training_step(loss, list(model.method.parameters()))()
    assert all(not torch.equal(p, old) for p, old in zip(model.method.parameters(), before, strict=True))


# One layer below the injection, two in it; no two sizes alike.
WORK = Work(batch=2, text=5, supervised=2, prompt=3, layers=3, first=1, hidden=8, ffn=24, vocabulary=50, embedding=8,
            levels=2, features=6)  # fmt: skip


def by_hand(prompt: bool) -> int:
    """The products of WORK one by one, as multiplications."""
    d, ffn = 8, 24
    text = 2 * 4  # the last token is left out
    asking = 2 * 2
    ends = 2 * (asking * d * 50) + 2 * (2 * 2 * 6 * d)  # head forward and backward; two connections, weight gradient
    if not prompt:
        first = (text * 2 + (text + 2) * 2) * d * d + text * 2 * d * ffn  # q, o; k, v with the image; fc1, fc2
        first += (text + 2 * 2) * d * d + text * 2 * d * ffn  # backward: o; k, v of the image; fc1, fc2
        last = (asking * 2 + (text + 2) * 2) * d * d + asking * 2 * d * ffn
        return ends + first + 2 * last
    mlp = 6 * 3 * d * d  # two maps, forward and both gradients
    lowest = (text + 3) * (4 * d * d + 2 * d * ffn) + (3 * 3 + text + 3) * d * d + (text + 3) * 2 * d * ffn
    rows = text + 2 * 3
    middle = (rows * 2 + (rows + 2) * 2) * d * d + rows * 2 * d * ffn
    last = (asking * 2 + (rows + 2) * 2) * d * d + asking * 2 * d * ffn
    return ends + mlp + lowest + 2 * middle + 2 * last


@pytest.mark.parametrize("prompt", [True, False])
def test_products_against_a_count_by_hand(prompt: bool) -> None:
    work = WORK if prompt else Work(**{**vars(WORK), "prompt": 0})
    counted = sum(product.flops * times for product, times in products(work).items())
    assert counted == 2 * by_hand(prompt)


def test_attention_against_a_count_by_hand() -> None:
    work = Work(**{**vars(WORK), "prompt": 0})
    first = sum(n + 1 for n in (1, 2, 3, 4))  # each text token sees itself, those before it, the image
    last = sum(n + 1 for n in (3, 4))  # only the predicting ones ask
    assert attention_flops(work) == 2 * 6 * 2 * (first + last) * 8
    below = (1 + 2 + 3) + 2 * sum(n + 3 for n in (1, 2, 3, 4))  # the prompt once, without the image
    middle = 2 * ((2 + 3 + 4) + sum(n + 3 + 1 for n in (1, 2, 3, 4)))
    assert attention_flops(WORK) == 2 * 6 * (below + middle + 2 * sum(n + 3 + 1 for n in (3, 4))) * 8


@pytest.mark.parametrize("name", METHODS)
def test_no_step_runs_with_fewer_products_than_necessary(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts what ours really runs: the necessary products, and columns and rows that could be left out.

    Left to torch's count alone: the last token, slot columns as queries, padding of whole batches; to ours alone:
    nothing (attention is left out on both sides, torch does not count the CPU's kernels).
    """
    monkeypatch.setattr(shapes, "optimize_frozen", lambda *_: None)  # torch does not count products with packed weights
    models = Models("tiny", SETTING)
    model = models.ours(name, torch.float32)
    batch = Batch(models.tokens, {"image": models.features})
    model.loss(batch)  # text states in memory
    with FlopCounterMode(display=False) as counter:
        total, tokens = model.loss(batch)
        (total / tokens).backward()
    work = work_of(model, SETTING.batch, SETTING.text, SETTING.supervised)
    needed = sum(product.flops * times for product, times in products(work).items())
    assert needed <= counter.get_total_flops() < 3 * needed
    assert flops(work) == needed + attention_flops(work)


def test_the_roofline_is_the_sum_of_what_was_measured() -> None:
    from benchmarks.roofline import matmul_name

    speed = 1e9  # FLOPs in a second, whatever the shape
    measured = {matmul_name(p, torch.bfloat16): p.flops / speed for p in products(WORK)}
    assert roofline_seconds(WORK, torch.bfloat16, measured) == pytest.approx(flops(WORK) / speed)
    assert any("float32" in name for name in measured)  # what is trained stays float32
    assert Product("forward", 2, 3, 4).flops == 48


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    two = [Contender(n, "train", lambda n=n: calls.append(n), lambda: calls.append("-"), samples=4) for n in "ab"]
    rows = measure(two, 3)
    assert "".join(calls) == "-a-a-b-b" + "-a-b" * 3
    assert [row["name"] for row in rows] == ["a", "b"]
    assert all(len(row["seconds"]) == 3 and row["min_s"] <= row["median_s"] for row in rows)


def test_json_has_every_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--shapes", "tiny", "--json", "--rounds", "1", "--threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"ratios", "rows", "machine"}
    assert set(result["ratios"]) == set(NAMES)
    assert all(value > 0 for value in result["ratios"].values())
    assert {"cpu", "threads", "torch"} <= set(result["machine"])
    seconds = {row["name"]: row["median_s"] for row in result["rows"]}
    for ratio, (above, below) in RATIOS.items():
        assert result["ratios"][ratio] == pytest.approx(seconds[above] / seconds[below])
    assert "train_lin_cached" in markdown(result)


def test_ratios_compare_what_they_say() -> None:
    ratios = dict(RATIOS)
    assert ratios.pop("generate_vs_text_only") == ("generate ours epalm greedy", "generate text-only greedy")
    for name, (above, below) in ratios.items():
        what, _, rest = name.partition("_")
        assert above.startswith(f"{what} literal epalm")
        assert below.startswith(f"{what} ours epalm")
        for word in ("bf16", "cached", "uncached", "greedy", "beam3"):
            assert (f" {word}" in below) == (word in rest.split("_"))
        assert ("epalm-lin" in above) == ("epalm-lin" in below) == ("lin" in rest.split("_"))


def test_parts_and_rows_are_measured_alone(models: Models) -> None:
    assert set(compare(models, ["generate"], 1)["ratios"]) == {r for r in NAMES if r.startswith("generate")}
    alone = compare(models, PARTS, 1, row="train ours epalm cached")
    assert [row["name"] for row in alone["rows"]] == ["train ours epalm cached"]
    assert [row["layers"] for row in depth_rows("tiny", SETTING, [2, 4], 1)] == [2, 2, 4, 4]


def test_cost_against_data_size_is_measured_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--shapes", "tiny", "--data-sizes", "40", "--rounds", "1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["cached_samples"] == 40
    assert row["peak_memory_mb"] > 50


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shapes", "opt-125m+vit-b"], "did you mean `opt-125m+vit-b16`?"),
        (["--models", "defualt"], "did you mean `default`?"),
        (["--shapes", "tiny", "--only", "trian"], "did you mean `train`?"),
        (["--shapes", "tiny", "--row", "train ours epalm cache"], "did you mean `train ours epalm cached`?"),
        (["--shapes", "tiny", "--rounds", "0"], "--rounds: give a number above 0"),
        (["--plan", "--gpu-factor", "-1"], "--gpu-factor: give a number above 0"),
    ],
)
def test_mistakes_name_the_nearest_choice(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words]) == 2
    assert said in capsys.readouterr().err


def test_the_plan_against_a_calculation_by_hand() -> None:
    costs = Costs(encode_s=0.5, train_s=0.1, cache_bytes=9216, trained_bytes=4_000_000)
    given = Assumptions(
        samples=1_000_000, epochs=2, gpu_factor=100, gpus=4, gpu_price=3, image_kb=100, shard_images=3000,
        network_mb_s=500, batch=50,
    )  # fmt: skip
    hand = {
        "shards": 334, "jpeg_tb": 0.1, "jpeg_read_h": 200 / 3600, "cache_tb": 0.009216, "cache_shard_mb": 27.648,
        "cache_read_h_per_epoch": 18.432 / 3600, "encode_gpu_h": 5000 / 3600, "train_gpu_h": 2000 / 3600,
        "total_gpu_h": 7000 / 3600, "total_gpu_h_without_cache": 12000 / 3600, "wall_h": 1750 / 3600,
        "price": 21000 / 3600, "optimizer_steps": 10_000, "gradient_tb_per_gpu": 0.04,
    }  # fmt: skip
    found = plan(costs, given)
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(hand)


def test_the_plan_prints_every_assumption(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--shapes", "tiny", "--plan", "--samples", "1000", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    for name in (*ASSUMED, *MEASURED, "wall_h", "price", "optimizer_steps"):
        assert name in shown


def test_fast_against_plain_path(dwarfs: Any) -> None:
    import support

    recipe = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data" / "train.jsonl")
    result = compare_paths(recipe, rounds=1)
    speed = {row["name"]: row["samples_per_s"] for row in result["rows"]}
    assert result["ratios"] == {"fast_vs_plain": pytest.approx(speed[FAST] / speed[PLAIN])}
    assert compare_paths(recipe, rounds=1, only_plain=True)["ratios"] == {}


def test_precisions_take_turns(dwarfs: Any) -> None:
    import support

    recipe = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data" / "train.jsonl")
    result = compare_precisions(["float32", "auto"], load_recipe(recipe), rounds=1)
    first, second = result["rows"]
    assert (first["name"], second["name"]) == (f"{FAST} float32", f"{FAST} auto (float32)")
    assert result["ratios"] == {
        "auto_vs_float32": pytest.approx(second["median_s"] / first["median_s"]),
        "auto_vs_float32_cpu": pytest.approx(second["median_cpu_s"] / first["median_cpu_s"]),
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--precision", "auto"], "give --models default, too"),
        (["--models", "default", "--precision", "float32,bfloat61"], "no dtype `bfloat61`; did you mean `bfloat16`?"),
        (["--models", "default", "--precision", "auto,auto"], "names one twice"),
    ],
)
def test_mistaken_precisions_are_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*given]) == 2
    assert said in capsys.readouterr().err
