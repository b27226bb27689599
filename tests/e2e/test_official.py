"""Made-up files in the layout of the official eP-ALM release: converted once, then a run like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import perceptune
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.models.import_epalm import import_official
from perceptune.types import Features
from released import CONFIG, DIM, LEVELS, Released, save


def imported(dwarfs: Path, file: Path, out: Path, *overrides: str, **given: Any) -> Path:
    return import_official(file, out, lm=str(dwarfs / "opt"), encoder=str(dwarfs / "vit"), overrides=overrides, **given)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("epalm", {}),
        ("epalm-pt", {"shared": True}),
        ("epalm-pt-l", {"shared": True, "prompt": "plain"}),
        ("epalm-lin", {"shared": True, "prompt": "none"}),
    ],
)
def test_each_variant_puts_the_same_into_the_lm(name: str, shape: dict[str, Any], dwarfs: Path, tmp_path: Path) -> None:
    released = Released(**shape)
    file = save(tmp_path / "checkpoint_best.pth", released)
    model = perceptune.load(imported(dwarfs, file, tmp_path / "run"))
    assert model.recipe.method.name == name
    values = torch.randn(3, LEVELS, 1, DIM)
    slots = {
        s.name: s for s in model.method.build_slots({"image": Features(values, torch.ones(3, dtype=torch.bool))}, 3)
    }
    image = slots["image"]
    assert image.sees_text
    assert sorted(image.states) == [1, 2]
    for layer, expected in zip((1, 2), released.connected(values), strict=True):
        assert torch.allclose(image.states[layer], expected, atol=1e-6)
    if "prompt" in slots:
        vectors = released.prompt_module.prefix_embedding(torch.arange(10))  # type: ignore[operator]
        assert torch.allclose(slots["prompt"].states[0][0], model.lm.project_prompt(vectors), atol=1e-6)
    assert ("prompt" in slots) == (name != "epalm-lin")


def test_the_run_answers_as_the_official_code_does(dwarfs: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "checkpoint_best.pth", Released())
    recipe = perceptune.load(imported(dwarfs, file, tmp_path / "run")).recipe
    assert (recipe.decode.max_length, recipe.decode.beams) == (30, 3)
    assert (recipe.text.template, recipe.text.separator) == ("{prompt}?", "</a>")
    image = recipe.encoders["image"]
    assert (image.size, image.resize, image.resample) == (16, "squash", "bicubic")
    assert image.mean == (0.48145466, 0.4578275, 0.40821073)
    options = recipe.method.options()
    assert (options["slot_mask"], options["standardize"]) == ("official", False)
    captions = perceptune.load(imported(dwarfs, file, tmp_path / "captions", captions=True)).recipe
    assert (captions.text.template, captions.text.separator) == ("", None)


def test_an_imported_run_answers_and_evaluates(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("checkpoint_best.pth"), Released())
    data = dwarfs / "data/train.jsonl"
    where = ["--lm", str(dwarfs / "opt"), "--encoder", str(dwarfs / "vit")]
    task = ["task.name=jsonl", f"task.train={data}"]
    assert cli(["import-epalm", "checkpoint_best.pth", *where, *task]) == 0
    assert "perceptune answer runs/checkpoint_best" in capsys.readouterr().out
    assert cli(["eval", "runs/checkpoint_best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluated_samples"] == 12
    row = json.loads(Path("runs/checkpoint_best/predictions.jsonl").read_text().splitlines()[0])
    assert cli(["answer", "runs/checkpoint_best", "--image", row["media"]["image"], row["prompt"]]) == 0
    assert capsys.readouterr().out.rstrip("\n") == row["answer"]
    assert cli(["import-epalm", "checkpoint_best.pth", *where]) == 2
    assert "not empty" in capsys.readouterr().err


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code in a checkpoint was run",))


PREFIX = "prompt_module.prefix_embedding"


def broken(key: str | None = None, tensor: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """The weights without one, or with another one."""
    weights = dict(Released().state_dict())
    if key is not None and tensor is None:
        del weights[key]
    elif key is not None and tensor is not None:
        weights[key] = tensor
    return weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": broken("connector.1.weight", torch.zeros(32, 7))}, r"connector.1.weight` .*\(32, 7\).*\(32, 24\)"),
        ({"model": broken("connector.0.weight")}, "lacks `connector.0.weight`"),
        ({"model": broken("connector.1.bias")}, "lacks `connector.1.bias`"),
        ({"model": broken(f"{PREFIX}.3.bias")}, f"lacks `{PREFIX}.3.bias`"),
        ({"model": broken(f"{PREFIX}.0.weight")}, f"lacks `{PREFIX}.0.weight`"),
        ({"model": broken("connector.scale", torch.zeros(1))}, "unknown weight `connector.scale`"),
        ({"model": broken("a.fc2.1.adapter.0.weight", torch.zeros(1))}, "unknown weight `a.fc2"),
        ({"model": {}}, "lacks `connector.0.weight`"),
        ({"model": 3}, "has no `model`"),
        ({"config": {"image_res": 16}}, "4 layers of lm .*method.first=N method.last=N"),
        ({"config": {**CONFIG, "end_layer_idx": 9}}, "layers 0-3"),
        ({"config": Evil()}, "refused, it holds `.*print`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path / "checkpoint.pth", Released(), **changes)
    with pytest.raises(UserError, match=message):
        imported(dwarfs, file, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "was run" not in capsys.readouterr().out


def test_files_that_are_no_checkpoint_are_refused(dwarfs: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("not a checkpoint")
    whole = save(tmp_path / "checkpoint.pth", Released()).read_bytes()
    (tmp_path / "torn.pth").write_bytes(whole[: len(whole) // 2])
    for name, message in [
        ("notes.pth", "no file of torch.save"),
        ("torn.pth", "no file of torch.save"),
        ("chekpoint.pth", "did you mean `checkpoint.pth`"),
    ]:
        with pytest.raises(UserError, match=message):
            imported(dwarfs, tmp_path / name, tmp_path / "run")


def test_half_precision_weights_and_a_named_range(dwarfs: Path, tmp_path: Path) -> None:
    """The large models were saved in half precision; a file without config needs the layers to be named."""
    released = Released()
    half = {f"module.{name}": tensor.half() for name, tensor in released.state_dict().items()}
    file = save(tmp_path / "checkpoint.pth", Released(), model=half, config=None)
    overrides = ("method.first=0", "method.last=2", "encoders.image.size=16")
    model = perceptune.load(imported(dwarfs, file, tmp_path / "run", *overrides))
    kept: Any = model.method.connectors["image"]  # type: ignore[index]
    assert model.method.range == range(3)
    assert torch.equal(kept.maps[0].weight, released.connector[0].weight.half().float())
    assert all(p.dtype == torch.float32 for p in model.method.parameters())
