"""Run folders: strict loading, other base models, newer and older formats, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.models import run_folder
from perceptune.models.run_folder import FORMAT_VERSION, METHOD
from perceptune.models.run_format import upgrade_recipe


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    perceptune.train(support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl"), run)
    return run


def edit_meta(run: Path, **changes: object) -> None:
    meta = json.loads((run / "meta.json").read_text())
    (run / "meta.json").write_text(json.dumps({**meta, **changes}))


def test_saving_a_loaded_model_changes_nothing(run: Path, tmp_path: Path) -> None:
    from perceptune.models.run_folder import save_run

    save_run(tmp_path / "again", perceptune.load(run))
    for name in ("run.yaml", "meta.json", METHOD):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name


def test_a_newer_format_is_refused(run: Path) -> None:
    edit_meta(run, format_version=FORMAT_VERSION + 1)
    with pytest.raises(UserError, match=f"run format {FORMAT_VERSION + 1}.*reads formats up to {FORMAT_VERSION}"):
        perceptune.load(run)


def test_another_base_model_is_refused(run: Path, dwarfs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(dwarfs / "lm", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    text = (run / "run.yaml").read_text().replace(str(dwarfs / "lm"), str(other))
    (run / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"trained on another base model: lm .*fingerprint"):
        perceptune.load(run)


def test_the_same_base_model_elsewhere_is_accepted(run: Path, dwarfs: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(dwarfs / "lm", tmp_path / "moved")
    text = (run / "run.yaml").read_text().replace(str(dwarfs / "lm"), str(moved))
    (run / "run.yaml").write_text(text)
    assert perceptune.load(run).method is not None


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_tensors_must_match_exactly(run: Path, change: str) -> None:
    tensors = load_file(run / METHOD)
    name = sorted(tensors)[0]
    if change == "missing":
        del tensors[name]
    elif change == "unknown":
        tensors["stranger"] = tensors[name].clone()
    else:
        tensors[name] = tensors[name][..., :-1].contiguous()
    save_file(tensors, run / METHOD)
    words = {
        "missing": f"lacks tensor `{name}`",
        "unknown": "unknown tensor `stranger`",
        "shape": f"`{name}` has shape",
    }
    with pytest.raises(UserError, match=words[change]):
        perceptune.load(run)


def test_damaged_files_are_named(run: Path) -> None:
    whole = (run / METHOD).read_bytes()
    (run / METHOD).write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"method\.safetensors: damaged"):
        perceptune.load(run)
    (run / METHOD).unlink()
    with pytest.raises(UserError, match=r"method\.safetensors: missing"):
        perceptune.load(run)
    (run / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"meta\.json: damaged"):
        perceptune.load(run)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        perceptune.load(tmp_path)


def test_a_run_folder_may_not_name_code(run: Path) -> None:
    text = (run / "run.yaml").read_text().replace("name: epalm", "name: os.path")
    (run / "run.yaml").write_text(text)
    with pytest.raises(UserError, match="third-party code, which a run folder may not name"):
        perceptune.load(run)


def test_format_1_stays_readable(dwarfs: Path, tmp_path: Path) -> None:
    """A run folder as the first release wrote it, with the dwarfs' weights beside it."""
    run = shutil.copytree(Path(__file__).parents[1] / "golden/run_v1", tmp_path / "run_v1")
    text = (
        (run / "run.yaml")
        .read_text()
        .replace("LM_FOLDER", str(run / "lm"))
        .replace("ENCODER_FOLDER", str(run / "encoder"))
    )
    (run / "run.yaml").write_text(text)
    model = perceptune.load(run)
    expected = json.loads((run / "expected.json").read_text())
    sample = perceptune.Sample("x", {"image": run / "picture.png"}, expected["prompt"])
    assert model.answer([sample]) == [expected["answer"]]


def test_an_answer_reads_no_data_set(
    trained: Path, dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How it is found in the generated text is stored with the run; of older runs the task is asked."""
    run = shutil.copytree(trained, tmp_path / "run")
    ask = ["answer", str(run), "color?", "--image", str(dwarfs / "data/train1.png")]
    meta = json.loads((run / "meta.json").read_text())
    assert meta["cleaning"] == {"lowercase": False, "first_line": False, "keeps_period": False}
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "make_task", lambda _: pytest.fail("the task was made"))
        assert cli(ask) == 0
    answer = capsys.readouterr().out
    del meta["cleaning"]
    (run / "meta.json").write_text(json.dumps(meta))
    assert cli(ask) == 0
    assert capsys.readouterr().out == answer


def test_recipes_of_format_1_are_brought_to_today_s() -> None:
    old = {"name": "r", "method": {"name": "full", "naming": 1, "speaks": False}}
    new = {"name": "r", "method": {"name": "full", "naming": 1, "uses_lm_loss": False}}
    assert upgrade_recipe(old, 1) == upgrade_recipe(new, 3) == new
    assert upgrade_recipe({"method": "epalm"}, 1) == {"method": "epalm"}


def test_default_audio_of_format_2_is_the_image_encoder(run: Path) -> None:
    """Of later runs it is another one; what was named keeps its name."""
    earlier, named = {"id": "dinov2-small", "seconds": 5}, {"id": "mine"}
    for given, meant in (("default", "dinov2-small"), ({"id": "default", "seconds": 5}, earlier), (named, named)):
        data = {"encoders": {"image": "default", "audio": given}}
        assert upgrade_recipe(data, 2) == {"encoders": {"image": "default", "audio": meant}}
        assert upgrade_recipe(data, 3) == data
    text = (run / "run.yaml").read_text().replace("encoders:", "encoders:\n  audio: {id: default}")
    (run / "run.yaml").write_text(text)
    assert run_folder.read_recipe(run).encoders["audio"].id == "default"
    edit_meta(run, format_version=2)
    assert run_folder.read_recipe(run).encoders["audio"].id == "dinov2-small"
