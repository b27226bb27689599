"""Training, resuming, answering, evaluating and serving as on a GPU, for every family of methods and both backbones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import blips
import rehearsals
import support
from perceptune.models.run_folder import METHOD, read_tensors
from rehearsals import Seen

DMA = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"]}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
PETAL = {"name": "petal", "dma": {"r": 4}}


@dataclass
class Case:
    """A method on a model; `ways` are those of answering that are tried beside the greedy one."""

    model: str
    method: dict[str, Any]
    ways: tuple[str, ...] = ("greedy",)
    precision: str = "float32"

    def recipe(self, tiny: Path, run: Path) -> dict[str, Any]:
        given = {
            "method": self.method, "train": support.train_section(
                steps=3, save_every=1, batch_size=4, precision=self.precision
            ),
            "cache": {"dir": str(run / "cache")}, "eval": {"batch_size": 4}, "decode": {"max_new_tokens": 2},
        }  # fmt: skip
        if self.model.startswith("blips/"):
            return blips.recipe(tiny / self.model, tiny / "data/train.jsonl", **given)
        return support.recipe(tiny / self.model, tiny / "vit", tiny / "data/train.jsonl", **given)


SLOTS = {
    "epalm": Case("llama", {"name": "epalm", "n_levels": 2}, ("greedy", "sampled", "beams", "penalised")),
    "epalm-ada": Case("gemma3", {"name": "epalm-ada", "n_levels": 2}, ("greedy", "beams")),
    "deep-prompt": Case("gpt2", {"name": "deep-prompt", "n_levels": 2}, ("sampled",), "bfloat16"),
    "magma": Case("opt", {"name": "magma"}),
    "limber": Case("bloom", {"name": "limber"}, ("beams",)),
    "epalm-dma": Case("llama", {"name": "epalm-dma", "n_levels": 2, "dma": DMA}, ("sampled",)),
    "lora": Case("llama", {"name": "lora", "peft": LORA}),
    "official": Case("opt", {"name": "epalm", "n_levels": 2, "slot_mask": "official"}, ("greedy", "beams")),
}
QFORMER = {
    "petal": Case("blips/t5", {**PETAL, "instructions": ["is this"]}, ("greedy", "sampled", "beams")),
    "petal-multi": Case("blips/llama", {
        "name": "petal", "dma": {"r": 4, "core": "cp", "gamma": "scalar", "gated": True},
        "instructions": ["is", "this"], "mode": "multi_pass", "sib": {"upper": "leave_one_out", "y": "instruction"},
    }),
    "full": Case("blips/blip2-opt", {"name": "full"}, ("beams",), "bfloat16"),
    "maple": Case("blips/t5", {"name": "maple"}),
}  # fmt: skip
THOROUGH = ("epalm", "instructblip/petal")  # also compared with an unbroken training, evaluated and served
CASES = {**SLOTS, **{f"instructblip/{name}": case for name, case in QFORMER.items()}}


# What the host waits for the device at most: in a training step with one forward pass, and for a token of an answer.
STEP = {"splice": 1, "instructblip": 4}
RANKED = 6  # for the choices of a sample; 1 where the prompt can be split off
TOKEN = {"greedy": 1, "sampled": 1, "beams": 1, "penalised": 3}


def require_clean(seen: Seen) -> None:
    assert seen.faults == []
    assert seen.without_kernel == []


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, rehearse: Any, tiny: Path, tmp_path_factory: Any) -> tuple[str, Path, Seen]:
    """A run that was torn down before its last step and resumed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    recipe = CASES[request.param].recipe(tiny, run.parent)
    twice = request.param in THOROUGH
    return request.param, run, rehearse(rehearsals.train_and_resume, recipe, run, twice=twice)


def test_trains_and_resumes(trained: tuple[str, Path, Seen]) -> None:
    name, run, seen = trained
    require_clean(seen)
    assert len(seen.steps) == 3
    for waits in seen.steps:
        assert waits.total() <= STEP["instructblip" if "/" in name else "splice"], waits
    whole = run.with_name("run-whole")
    if whole.exists():
        resumed, straight = read_tensors(run / METHOD), read_tensors(whole / METHOD)
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_answers(trained: tuple[str, Path, Seen], rehearse: Any, tiny: Path) -> None:
    name, run, _ = trained
    seen = rehearse(rehearsals.answer, run, tiny / "data", CASES[name].ways)
    require_clean(seen)
    assert seen.found["device"] == "cuda:0"
    for way in CASES[name].ways:
        assert len(seen.found[way]) == 4
        tokens = rehearsals.DECODING[way].max_new_tokens
        further = seen.parts[way] - seen.parts[f"{way}, one token"]
        assert further.total() <= TOKEN[way] * (tokens - 1), further
    if "rank" in seen.parts:
        assert seen.parts["rank"].total() <= RANKED * 4, seen.parts["rank"]


def test_evaluates_and_serves(trained: tuple[str, Path, Seen], rehearse: Any) -> None:
    """One run of each backbone; the others differ in nothing that matters here."""
    name, run, _ = trained
    if name not in THOROUGH:
        return
    seen = rehearse(rehearsals.evaluate, run)
    require_clean(seen)
    assert seen.found["results"]["evaluated_samples"] == 6
    seen = rehearse(rehearsals.serve, run)
    require_clean(seen)
    assert all(status == 200 for status, _ in seen.found.values()), seen.found


def test_the_pretend_gpu_finds_mistakes(rehearse: Any) -> None:
    said = {
        "mixed": "tensors on cuda:0 and cpu", "generator": "generator is of the other device", "numpy": "numpy",
        "blind rows": "see nothing", "value": "value read", "pageable": "copied from the host",
        "to the host": "copied to the host", "mask": "mask", "size": "size depends on data",
    }  # fmt: skip
    found = rehearse(rehearsals.provoke)
    assert found.pop("pinned") == []
    assert {name: [words in one for one in found[name]] for name, words in said.items()} == {n: [True] for n in said}


@pytest.mark.parametrize(("dtype", "way"), [("float32", "there"), ("bfloat16", "there"), ("bfloat16", "back")])
def test_a_model_that_was_made_ready_can_be_moved(
    dtype: str, way: str, rehearse: Any, tiny: Path, tmp_path: Path
) -> None:
    seen = rehearse(rehearsals.build_and_move, SLOTS["epalm"].recipe(tiny, tmp_path), tiny / "data", dtype, way)
    require_clean(seen)
    assert seen.found["cuda"] == pytest.approx(seen.found["cpu"], rel=1e-5 if dtype == "float32" else 2e-2)


def test_doctor_tries_it_and_writes_a_report(rehearse: Any, tmp_path: Path) -> None:
    """All but what only a real one can say: memory, waits, speed are numbers of nothing here."""
    seen = rehearse(rehearsals.doctor, tmp_path / "report.json")
    require_clean(seen)
    code, report = seen.found["code"], json.loads((tmp_path / "report.json").read_text())
    assert [check["name"] for check in report["checks"] if check["state"] != "ok"] == []
    assert code == 0
    assert {"splice: resume", "instructblip: answer", "splice: rank"} <= {one["name"] for one in report["checks"]}
    assert report["machine"]["gpu"] == "pretend"
