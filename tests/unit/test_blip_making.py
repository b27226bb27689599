"""A small InstructBLIP made of parts: an exact conversion, an ordinary folder, and the way back from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, InstructBlipForConditionalGeneration, InstructBlipProcessor

import blips
import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.config.command_schema import BuildConfig
from perceptune.config.schema import NamedPart
from perceptune.errors import UserError
from perceptune.models.instructblip.create import export_instructblip, make_instructblip, vision_of, wordpiece
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.run_folder import save_run
from perceptune.types import Decoding, Sample

SHAPE: dict[str, Any] = {"image_size": 24, "layers": 2, "hidden": 16, "heads": 2, "queries": 3, "vocabulary": 60}


def words(dwarfs: Path) -> NamedPart:
    return NamedPart.model_validate({"name": "jsonl", "train": str(dwarfs / "data/train.jsonl")})


@pytest.fixture(scope="module")
def made(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "small"
    build = BuildConfig(**SHAPE, lm=str(dwarfs / "lm"), encoder=str(dwarfs / "encoder"))
    return make_instructblip(folder, words(dwarfs), build)


def dinov2(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 40, "patch_size": 8}
    tower = Dinov2Model(Dinov2Config(**{**shape, "mlp_ratio": 2, **changes}))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return tower.eval()


@pytest.mark.parametrize("size", [16, 40, 56])
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}])
def test_the_converted_encoder_computes_the_same(size: int, changes: dict[str, Any]) -> None:
    tower, pixels = dinov2(**changes), torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = tower(pixels).last_hidden_state
        found = vision_of(tower, size)(pixels).last_hidden_state
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5


def test_an_encoder_that_has_no_place_is_named(dwarfs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a multiple"):
        vision_of(dinov2(), 20)
    with pytest.raises(UserError, match="SwiGLU"):
        vision_of(dinov2(use_swiglu_ffn=True), 16)
    build = BuildConfig(**SHAPE, lm=str(dwarfs / "lm"), encoder=str(dwarfs / "vit"))
    with pytest.raises(UserError, match="made of a DINOv2"):
        make_instructblip(tmp_path / "new", words(dwarfs), build)
    with pytest.raises(UserError, match="there already"):
        make_instructblip(tmp_path, words(dwarfs), build)
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_knows_its_texts() -> None:
    reader = wordpiece(["A red dog.", "a blue DOG"] * 3, 60)
    ids = reader("The red DOG").input_ids
    assert [reader.convert_ids_to_tokens(ids)[i] for i in (0, -3, -2, -1)] == ["[CLS]", "red", "dog", "[SEP]"]
    assert len(reader) <= 60


@pytest.mark.parametrize("full", [False, True])
def test_the_frozen_parts_are_the_given_ones(dwarfs: Path, tmp_path: Path, full: bool) -> None:
    """Also where every row of the LM's table belongs to a token already, so that the image's needs a new one."""
    source = support.save_lm(tmp_path / "lm")
    if full:
        tokenizer = support.tokenizer()
        tokenizer.add_tokens([f"<{i}>" for i in range(4)])
        tokenizer.save_pretrained(source)
    build = BuildConfig(**SHAPE, lm=str(source), encoder=str(dwarfs / "encoder"))
    folder = make_instructblip(tmp_path / "new", words(dwarfs), build)
    model, lm = InstructBlipForConditionalGeneration.from_pretrained(folder), support.random_lm("llama")
    found = model.language_model.state_dict()
    for name, value in lm.state_dict().items():
        assert torch.equal(found[name][: len(value)], value)
        assert not found[name][len(value) :].any()
    assert found["lm_head.weight"].shape[0] == support.SIZE + full
    assert model.config.image_token_index == (support.SIZE if full else len(support.VOCABULARY))
    assert model.query_tokens.std() > 0.01
    assert len({tuple(row.tolist()) for row in model.query_tokens[0]}) == SHAPE["queries"]


def test_the_folder_is_an_ordinary_one(made: Path, dwarfs: Path) -> None:
    """transformers' own model and processor answer as we do."""
    ours = cast(InstructBlipModel, perceptune.build(blips.recipe(made, text={"template": "{prompt}"})))
    theirs, processor = (
        kind.from_pretrained(made) for kind in (InstructBlipForConditionalGeneration, InstructBlipProcessor)
    )
    answers = set()
    for i in range(3):
        picture = dwarfs / f"data/train{i}.png"
        given = processor(images=Image.open(picture).convert("RGB"), text="what color is this?", return_tensors="pt")
        row = theirs.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=2, pad_token_id=0)[0]
        new = row[given["input_ids"].shape[1] :] if len(row) > 5 else row
        expected = processor.tokenizer.decode(new, skip_special_tokens=True)
        sample = Sample("", {"image": picture}, "what color is this?")
        assert ours.answer([sample], decoding=Decoding(5)) == [expected]
        answers.add(tuple(ours.query([sample]).queries.flatten().tolist()))
    assert len(answers) == 3


def test_a_trained_one_goes_back_into_a_folder(made: Path, dwarfs: Path, tmp_path: Path) -> None:
    data = dwarfs / "data/train.jsonl"
    perceptune.train(blips.recipe(made, data), tmp_path / "run")
    assert cli(["export-instructblip", str(tmp_path / "run"), str(tmp_path / "trained")]) == 0
    trained = cast(InstructBlipModel, perceptune.load(tmp_path / "run"))
    again = cast(InstructBlipModel, perceptune.build(blips.recipe(tmp_path / "trained", method="head")))
    untrained = cast(InstructBlipModel, perceptune.build(blips.recipe(made)))
    sample = Sample("", {"image": dwarfs / "data/train0.png"}, "what color?")
    queries = [model.query([sample]).queries for model in (trained, again, untrained)]
    assert torch.equal(queries[0], queries[1])
    assert not torch.equal(queries[0], queries[2])
    assert trained.answer([sample]) == again.answer([sample])
    with pytest.raises(UserError, match="there already"):
        export_instructblip(tmp_path / "run", tmp_path / "trained")


def test_what_is_no_single_model_is_not_exported(dwarfs: Path, tmp_path: Path) -> None:
    recipe = {"lm": str(dwarfs / "lm"), "encoders": {"image": str(dwarfs / "encoder")}}
    save_run(tmp_path / "run", perceptune.build({**recipe, "method": {"name": "epalm", "n_levels": 2}}))
    with pytest.raises(UserError, match="no single model"):
        export_instructblip(tmp_path / "run", tmp_path / "new")


def test_the_command_says_what_is_wrong(dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(dwarfs / "data/train.jsonl")
    given = ["build-instructblip", str(tmp_path / "new"), "--data", data, "--lm", str(dwarfs / "lm")]
    given += ["--encoder", str(dwarfs / "encoder"), "--image-size", "24", "--hidden", "16"]
    assert cli([*given, "--heads", "3"]) == 2
    assert "not a multiple" in capsys.readouterr().err
    assert cli([*given, "--heads", "2", "--layers", "1", "--vocabulary", "40"]) == 0
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["num_query_tokens"] == 16
    assert config["qformer_config"]["num_hidden_layers"] == 1


def test_a_recipe_says_what_is_made(dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its `build` gives the shape, a flag comes before it, and the recipe trains what was made."""
    recipe = tmp_path / "my.yaml"
    build = {**SHAPE, "lm": str(dwarfs / "lm"), "encoder": str(dwarfs / "encoder")}
    task = {"name": "jsonl", "train": str(dwarfs / "data/train.jsonl")}
    settings = {"backbone": "instructblip", "build": build, "task": task, "method": "full", "train": {"steps": 1}}
    recipe.write_text(json.dumps(settings))
    folder = tmp_path / "new"
    assert cli(["build-instructblip", str(folder), "--recipe", str(recipe), "--queries", "5"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["num_query_tokens"] == 5
    assert config["qformer_config"]["hidden_size"] == SHAPE["hidden"]
    _, _, told = capsys.readouterr().out.partition("perceptune train ")
    assert cli(["train", *told.split(), "--run", str(tmp_path / "run")]) == 0
    recipe.write_text(json.dumps({"backbone": "instructblip", "build": build}))
    assert cli(["build-instructblip", str(tmp_path / "other"), "--recipe", str(recipe)]) == 2
    assert "no `task`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli(["build-instructblip", str(tmp_path / "other"), "--recipe", str(recipe), "--data", "my.jsonl"])
