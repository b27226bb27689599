"""Which device a process takes, and what happens to parts that were made for the CPU when a model is moved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import support
from perceptune.cli.main import run as cli
from perceptune.config.training import TrainConfig
from perceptune.lm.kernels.optimize import optimize_modules
from perceptune.lm.kernels.short_attention import show_something
from perceptune.training.optimizer import MethodOptimizer
from perceptune.utils import devices
from perceptune.utils.devices import default_device, device_like, resolve_device
from perceptune.utils.tensors import read_numbers


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    return monkeypatch


def test_each_process_of_a_machine_has_a_gpu_of_its_own(four_gpus: pytest.MonkeyPatch) -> None:
    assert default_device() == torch.device("cuda:0")
    four_gpus.setenv("LOCAL_RANK", "3")
    assert default_device() == resolve_device(None) == resolve_device("cuda") == torch.device("cuda:3")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    four_gpus.setenv("ACCELERATE_USE_CPU", "true")
    assert default_device() == torch.device("cpu")


def test_what_was_answered_on_a_cpu_is_asked_again_there(four_gpus: pytest.MonkeyPatch) -> None:
    assert device_like("cpu") == torch.device("cpu")
    assert device_like("cuda") == device_like(None) == torch.device("cuda:0")


@pytest.mark.parametrize(
    "module", ["models/build", "models/run_folder", "lm/quantization", "evaluation/reference_answers"]
)
def test_whoever_chooses_a_device_asks_for_that_of_the_process(module: str) -> None:
    """No other place asks torch whether there is CUDA."""
    source = Path(devices.__file__).parents[1] / f"{module}.py"
    assert "cuda.is_available" not in source.read_text(encoding="utf-8")


def test_numbers_are_read_together() -> None:
    assert read_numbers([torch.tensor(1.5), 2.0, torch.tensor(-1.0)]) == [1.5, 2.0, -1.0]
    assert read_numbers([]) == []


def test_a_row_that_sees_nothing_sees_everything() -> None:
    mask = torch.tensor([[[[True, False], [False, False]]]])
    assert show_something(mask).tolist() == [[[[True, False], [True, True]]]]


def test_lighter_parts_are_given_up_where_a_model_has_been_moved() -> None:
    """On the meta device, which stands for any other."""
    lm = support.random_lm("llama").requires_grad_(False)
    optimize_modules(lm.modules(), 100)
    norm = lm.model.norm
    moved = norm.to("meta")
    assert moved(torch.ones(1, 2, 32, device="meta")).device.type == "meta"


def test_the_state_of_the_optimizer_is_where_its_parameters_are() -> None:
    """Step counts, too: the fused kernel of a GPU reads them as its own memory."""

    class Method(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, device="meta"))

        def param_groups(self) -> list[dict[str, object]]:
            return [{"name": "method", "named": [("weight", self.weight)]}]

        def auxiliary_group(self) -> None:
            return None

    optimizer = MethodOptimizer(Method(), TrainConfig(), 3)  # type: ignore[arg-type]
    optimizer.load_state_dict({"step/weight": torch.tensor(2.0), "exp_avg/weight": torch.zeros(3)})
    assert {value.device.type for value in optimizer.adam.state[optimizer.parameters[0]].values()} == {"meta"}


def test_doctor_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert cli(["doctor", "--gpu", "--out", str(tmp_path / "report.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
