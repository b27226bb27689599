"""Training with transformers' Trainer and TRL's SFTTrainer: the losses of our own loop, and what they save."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

import perceptune
import support
from hfruns import messages_of
from perceptune.data.build_task import make_task
from perceptune.data.media.source import open_image
from perceptune.hf import PerceptuneForConditionalGeneration, PerceptuneProcessor
from perceptune.models.hf.conversion import config_of
from perceptune.types import Sample
from perceptune.utils.run_log import read_log

RATE, STEPS, ROWS = 1e-2, 3, 4


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    """Keeps what the Trainer sets for its whole process, such as a precision, from later tests."""
    before = dict(os.environ)
    yield
    for name in {*os.environ} - {*before}:
        del os.environ[name]
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def given(dwarfs: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe whose updates transformers' Trainer can make, too: one rate, constant, all samples in each step."""
    data = support.save_data(tmp_path / "data", rows=ROWS)
    train = support.train_section(
        steps=STEPS, batch_size=ROWS, lr=RATE, prompt_lr=RATE, schedule="constant", weight_decay=0.0, clip=1.0
    )
    return support.recipe(dwarfs / "lm", dwarfs / "encoder", data, train=train)


@pytest.fixture
def samples(given: dict[str, Any]) -> list[Sample]:
    return list(make_task(perceptune.load_recipe(given)).samples("train"))


@pytest.fixture
def model(given: dict[str, Any], samples: list[Sample]) -> PerceptuneForConditionalGeneration:
    """What our loop starts from."""
    made: Any = perceptune.build(given)
    made.fit_statistics(samples)
    return PerceptuneForConditionalGeneration(config_of(made), made)


class Recording(Trainer):
    """Keeps each loss as it was computed; the log rounds them."""

    def compute_loss(self, *given: Any, **options: Any) -> Any:
        found = super().compute_loss(*given, **options)
        self.__dict__.setdefault("losses", []).append(float(found.detach()))
        return found


def collator(processor: PerceptuneProcessor) -> Callable[[Sequence[dict[str, Any]]], Any]:
    def collate(rows: Sequence[dict[str, Any]]) -> Any:
        batch = processor.apply_chat_template(
            [row["messages"] for row in rows], tokenize=True, return_dict=True, return_tensors="pt",
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
        return batch

    return collate


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": ROWS, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "logging_steps": 1, "report_to": [], "use_cpu": True,
        "remove_unused_columns": False, "save_strategy": "no", "disable_tqdm": True, "optim": "adamw_torch", **changes,
    }  # fmt: skip


def rows_of(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [{"messages": messages_of(sample, sample.targets[0])} for sample in samples]


def trainer(
    model: PerceptuneForConditionalGeneration, samples: Sequence[Sample], folder: Path, **more: Any
) -> Recording:
    given = TrainingArguments(**arguments(folder, **more))
    processor = PerceptuneProcessor.from_model(model)
    return Recording(model, given, train_dataset=rows_of(samples), data_collator=collator(processor))


def test_trainer_has_the_losses_of_our_loop(
    given: dict[str, Any], samples: list[Sample], model: PerceptuneForConditionalGeneration, tmp_path: Path
) -> None:
    perceptune.train(given, tmp_path / "ours")
    ours = [row["loss"] for row in read_log(tmp_path / "ours") if row.get("event") == "step"]
    assert len(ours) == STEPS
    assert max(ours) - min(ours) > 0.01, "an update changes the loss"
    frozen = {name: one.clone() for name, one in model.state_dict().items() if not name.startswith("model.method.")}
    theirs = trainer(model, samples, tmp_path / "theirs")
    theirs.train()
    assert theirs.losses == pytest.approx(ours, abs=1e-5)
    for name, one in frozen.items():
        assert torch.equal(one, model.state_dict()[name]), name


def test_trainer_accumulates_and_resumes(
    samples: list[Sample], model: PerceptuneForConditionalGeneration, given: dict[str, Any], tmp_path: Path
) -> None:
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS}
    whole = trainer(model, samples, tmp_path / "whole", **options, save_strategy="steps", save_steps=2)
    whole.train()
    sums = [sum(whole.losses[step * ROWS : (step + 1) * ROWS]) for step in range(STEPS)]
    perceptune.train(given, tmp_path / "ours")
    log = [row["loss"] for row in read_log(tmp_path / "ours") if row.get("event") == "step"]
    assert sums == pytest.approx(log, abs=1e-5), "each token weighs the same"
    [checkpoint] = (tmp_path / "whole").glob("checkpoint-2")
    again = trainer(AutoModelForImageTextToText.from_pretrained(checkpoint), samples, tmp_path / "whole", **options)
    again.train(resume_from_checkpoint=str(checkpoint))
    resumed, at_once = again.model.state_dict(), model.state_dict()
    for name in at_once:
        assert torch.equal(resumed[name], at_once[name]), name


def test_gradient_checkpointing_changes_no_gradient(
    samples: list[Sample], model: PerceptuneForConditionalGeneration
) -> None:
    batch = collator(PerceptuneProcessor.from_model(model))(rows_of(samples))
    model(**batch).loss.backward()
    plain = [parameter.grad.clone() for parameter in model.model.method.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model(**batch).loss.backward()
    for before, parameter in zip(plain, model.model.method.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before, rtol=0, atol=1e-6)


def test_sft_trainer_trains_the_method(
    samples: list[Sample], model: PerceptuneForConditionalGeneration, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "images": [open_image(sample.list_media("image")[0])],
            "prompt": [{"role": "user", "content": sample.prompt}],
            "completion": [{"role": "assistant", "content": sample.targets[0]}],
        }
        for sample in samples
    ]
    processor = PerceptuneProcessor.from_model(model)
    given = trl.SFTConfig(**arguments(tmp_path / "sft", max_length=None, activation_checkpointing=False))
    before = [parameter.clone() for parameter in model.model.method.parameters()]
    made = trl.SFTTrainer(model, given, train_dataset=datasets.Dataset.from_list(rows), processing_class=processor)
    made.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.model.method.parameters(), strict=True))
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
