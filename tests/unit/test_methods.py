"""What methods refuse, other PEFT types, and training of the base models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import perceptune
import support
from answers import generated
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.kernels.optimize import optimize_frozen
from perceptune.lm.probe import probe
from perceptune.models.run_folder import read_meta
from perceptune.models.slots.model import SlotModel
from perceptune.tools.feature_cache import build_features
from perceptune.training.optimizer import MethodOptimizer
from perceptune.types import Decoding
from rows import row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_levels": 3}, "n_levels is 3, but only 2 LM layers are injected: the last 1 would never enter"),
        ({"n_levels": 1, "levels": [4]}, "the image encoder has no layer 4: its layers are 0 to 3"),
        ({"levels": [-1, 3]}, "an encoder layer is named twice"),
        ({"n_levels": 6, "inject": {4: 0}}, "method.inject: the LM has no layer 4: its layers are 0 to 3"),
        ({"first": 3, "last": 2}, "not a range inside the LM's layers 0-3"),
    ],
)
def test_plans_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        row("epalm", "llama", **options)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "epalm", "inject": {1: 0}, "first": 1}, "`inject` names every layer, so it does not go with `first`"),
        ({"name": "epalm", "unfreeze": {"lm": 0}}, "`unfreeze.lm` is a learning rate, greater than 0"),
        ({"name": "epalm", "unfreeze": ["lmm"]}, "unfreeze"),
        ({"name": "epalm", "n_levels": 2, "unfreeze": ["lm"]}, "the LM is held in bfloat16.*`train.precision`"),
        ({"name": "lora", "peft": {"peft_type": "LORAX"}}, "PEFT has no `LORAX`; did you mean `LORA`"),
        ({"name": "lora", "peft": {"rank": 4}}, "LORA has no key `rank`"),
        ({"name": "lora", "peft": {"target_modules": ["nothing"]}}, "method.peft: .*nothing"),
        ({"name": "lora", "peft": {"target_modules": ["lm_head"]}}, "`lm_head` is not inside the LM's blocks"),
        ({"name": "lora", "peft": {"bias": "all"}}, "train weights of the LM itself"),
        ({"name": "lora", "peft": {"init_lora_weights": "pissa"}}, "changes the frozen weights"),
        ({"name": "lora", "peft": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}}, "method.peft: "),
    ],
)
def test_what_is_refused(method: dict[str, Any], words: str, dwarfs: Path) -> None:
    lm = dwarfs / ("opt" if "weights of the LM itself" in words else "lm")  # whose maps have biases
    dtype = "bfloat16" if "bfloat16" in words else "float32"
    with pytest.raises(UserError, match=words):
        perceptune.build(support.recipe(lm, dwarfs / "encoder", method=method), dtype=dtype)


def test_a_trained_lm_is_not_asked_in_another_dtype(dwarfs: Path) -> None:
    method = {"name": "epalm", "n_levels": 2, "unfreeze": ["lm"]}
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", method=method)
    perceptune.build(given)
    with pytest.raises(UserError, match=r"eval\.dtype: bfloat16, but `method\.unfreeze`"):
        perceptune.build({**given, "eval": {**given.get("eval", {}), "dtype": "bfloat16"}})


def test_refreshing_at_levels_and_free_plans() -> None:
    assert row("epalm", "llama", refresh="level", first=0).method.injected == {0: 0, 2: 1}
    assert row("epalm", "llama", first=0).method.injected == {0: 0, 1: 0, 2: 1, 3: 1}
    method = row("epalm@free-plan", "llama").method
    assert (method.injected, method.levels("image"), method.first_layer) == ({1: 0, 3: 1}, [3, 1], 0)
    assert row("epalm-lin", "llama", n_levels=1, levels=[0]).method.levels("image") == [0]


PEFT: dict[str, dict[str, Any]] = {
    "dora": {"r": 2, "use_dora": True},
    "all-linear": {"r": 2, "target_modules": "all-linear", "layers_to_transform": [2, 3], "lora_dropout": 0.5},
    "injected": {"r": 2, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": "injected"},
    "loha": {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj", "v_proj"]},
    "ia3": {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
}


@pytest.mark.parametrize("name", PEFT)
def test_other_peft_types_are_owned_by_the_method_alone(name: str) -> None:
    """Trained, hence different logits; generation as by recomputation; the LM's tree and bits as without it."""
    r = row("lora", "llama", peft=PEFT[name], first=2, last=3)
    plain = FrozenLM(support.random_lm("llama"))
    assert set(r.lm.model.state_dict()) == set(plain.model.state_dict())
    assert all(torch.equal(v, plain.model.state_dict()[k]) for k, v in r.lm.model.state_dict().items())
    assert r.method.first_layer == (2 if name in ("all-linear", "injected") else 0)
    r.method.eval()
    assert (r.lm(r.ids, r.mask) - plain(r.ids, r.mask))[r.mask.bool()].abs().max() > 1e-3
    difference = r.logits() - r.lm(r.ids, r.mask, r.plan(), use_reference_path=True)
    assert difference[r.mask.bool()].abs().max() < 1e-4
    first = r.logits()[:, -1].argmax(-1).tolist()
    assert [t[:1] for t in generated(r.lm, r.ids, r.mask, r.plan(), Decoding(1), eos=-1, pad=0)] == [[t] for t in first]
    r.logits()[:, -1].pow(2).mean().backward()
    assert all(p.grad is not None for p in r.method.peft.parameters())
    if name == "all-linear":  # dropout acts while the method is trained, and not else
        r.method.train()
        assert (r.logits() - r.logits()).abs().max() > 1e-3


def trained(folder: Path, dwarfs: Path, method: dict[str, Any], **train: Any) -> Path:
    """A run of a few steps."""
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", method=method)
    given["train"] = support.train_section(**train)
    perceptune.train(given, folder)
    return folder


BOTH = {"name": "epalm", "n_levels": 2, "unfreeze": {"lm": 1e-3, "encoder": 1e-3}}


def test_unfrozen_models_are_trained_saved_and_restored(dwarfs: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", dwarfs, BOTH)
    before, after = perceptune.build(perceptune.load_recipe(run / "run.yaml")), perceptune.load(run)
    samples = list(make_task(after.recipe).samples("train"))
    for part in ("lm", "encoders"):
        old, new = (getattr(model, part).state_dict() for model in (before, after))
        assert any(not torch.equal(old[key], new[key]) for key in old), part
    stored = load_file(run / "method.safetensors")
    assert all(torch.equal(stored[name], p) for name, p in after.method.named_parameters())
    assert after.method.param_groups()[-1]["lr"] == 1e-3
    meta = read_meta(run)
    assert meta["frozen"] == 0
    assert meta["trained_share"] == 1.0
    again = tmp_path / "again"
    perceptune.models.run_folder.save_run(again, after)  # type: ignore[attr-defined]
    assert perceptune.load(again).answer(samples) == after.answer(samples)


def test_a_resumed_training_of_the_base_models_is_the_uninterrupted_one(dwarfs: Path, tmp_path: Path) -> None:
    whole = load_file(trained(tmp_path / "whole", dwarfs, BOTH, steps=4) / "method.safetensors")
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        from perceptune.training.trainer import Trainer

        step = Trainer._step
        patch.setattr(Trainer, "_step", lambda self, *a: self.state.step == 2 or step(self, *a))
        trained(run, dwarfs, BOTH, steps=4)
    perceptune.train(run=run, resume=True)
    resumed = load_file(run / "method.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_features_of_a_trained_encoder_carry_gradients_and_are_not_kept(dwarfs: Path) -> None:
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", method=BOTH)
    model = perceptune.build(given)
    kept = perceptune.build({**given, "method": {**BOTH, "unfreeze": {}}})
    samples = list(make_task(model.recipe).samples("train"))[:5]
    live, cached = (one.encode([*samples, samples[0]])["image"].values for one in (model, kept))
    assert live.requires_grad
    assert not cached.requires_grad
    assert torch.allclose(live, cached, atol=1e-5)
    assert model.get_cached(samples) is None
    model.precompute(samples)
    loss, _ = model.loss(model.collate(samples))
    loss.backward()
    encoder = [p for p in model.method.unfrozen["image"].parameters() if p.grad is not None]
    assert len(encoder) > 20
    with torch.no_grad():
        encoder[0].add_(torch.randn_like(encoder[0]))
    assert (model.encode(samples)["image"].values - live[:5]).abs().max() > 1e-3
    with pytest.raises(UserError, match="trains its encoders"):
        build_features(perceptune.load_recipe(given))


def test_an_unfrozen_lm_uses_no_shortcut_of_frozen_ones(dwarfs: Path) -> None:
    """Text states, packed weights, light norms, the frozen head: each would be wrong or lose a gradient."""
    method = {"name": "epalm-lin", "n_levels": 2, "unfreeze": ["lm"]}
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", method=method)
    model, plain = perceptune.build(given), perceptune.build(given)
    assert not model.reuses_texts
    optimize_frozen(model.lm, 0, 1024)
    plain.use_reference_path = True
    batch = model.collate(list(make_task(model.recipe).samples("train"))[:4])
    for one in (model, plain):
        one.loss(batch)[0].backward()
    ours, theirs = (dict(one.method.named_parameters()) for one in (model, plain))
    assert all(p.grad is not None for p in ours.values())
    for name, p in ours.items():
        assert torch.allclose(p.grad, theirs[name].grad, atol=2e-4, rtol=1e-3), name  # type: ignore[arg-type]


def test_rates_of_unfrozen_models_are_their_own(dwarfs: Path) -> None:
    model = perceptune.build(support.recipe(dwarfs / "lm", dwarfs / "encoder", method={"name": "full"}))
    config = model.recipe.train
    optimizer = MethodOptimizer(model.method, config, 100)
    rates = optimizer.set_lr(10)
    assert set(rates) == {"connector", "unfrozen lm", "unfrozen image"}
    assert rates["unfrozen lm"] == rates["unfrozen image"] == 1e-7
    assert {group["name"]: group["lr"] for group in optimizer.adam.param_groups} == rates
    assert rates["connector"] != 1e-7


def test_dropout_of_the_method_acts_while_it_is_trained_and_not_while_it_is_judged(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bool]] = {"loss": set(), "answer": set()}
    for name, states in seen.items():
        original = getattr(SlotModel, name)

        def spy(self: SlotModel, *a: Any, o: Any = original, s: set[bool] = states, **k: Any) -> Any:
            s.add(self.method.training)
            return o(self, *a, **k)

        monkeypatch.setattr(SlotModel, name, spy)
    method = {"name": "lora", "peft": {"lora_dropout": 0.5}}
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl", method=method)
    perceptune.train(given, tmp_path / "run", overrides=["eval.every=3"])
    assert seen == {"loss": {True}, "answer": {False}}


def test_one_model_may_be_wrapped_twice() -> None:
    """Each wrapper answers as one that has the model for itself, in turns."""
    shared, alone = support.random_lm("llama"), FrozenLM(support.random_lm("llama"))
    wrappers = [FrozenLM(shared), FrozenLM(shared)]
    r = row("epalm", "llama")
    slots = r.method.build_slots({"image": r.media(3, [True, False, True])}, 3)
    expected = alone(r.ids[:3], r.mask[:3], slots)
    for lm in (*wrappers, wrappers[0]):
        lm.capabilities = probe(lm)
        assert torch.equal(lm(r.ids[:3], r.mask[:3], slots), expected)
        assert generated(lm, r.ids[:3], r.mask[:3], slots, Decoding(4), eos=-1, pad=0) == generated(
            alone, r.ids[:3], r.mask[:3], slots, Decoding(4), eos=-1, pad=0
        )
    assert FrozenLM(support.random_lm("llama", "eager")).capabilities.split_disabled_reason is None
