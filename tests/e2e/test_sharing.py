"""Runs for others: zip files, a hub, the model card, answers to verify by."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import perceptune
import support
from hub import Hub, serving
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.evaluation.reference_answers import synthetic_samples, verify_reference_answers
from perceptune.evaluation.runner import EvalOutput
from perceptune.models.run_folder import save_run
from perceptune.models.run_location import CARD, META, METHOD, PROOF, RECIPE, local_run
from perceptune.tools.export.bundle import export
from perceptune.tools.export.hub import push
from perceptune.tools.report.shots import shots
from perceptune.training.validation import Validator

FILES = (CARD, META, METHOD, PROOF, RECIPE)  # of a run without consensus decoding


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub cache", monkeypatch) as found:
        yield found


def answers(run: str | Path) -> list[str]:
    samples = [*synthetic_samples(["image"]), perceptune.Sample("text", {}, "color?")]
    return perceptune.load(run, overrides=["cache.features=off"]).answer(samples)


def test_a_zip_file_and_its_folder_answer_as_the_run(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    expected = answers(trained)
    assert len(set(expected)) > 1, "something depends on the question"
    assert answers(tmp_path / "a.zip") == answers(tmp_path / "unpacked") == expected
    assert (tmp_path / "unpacked" / METHOD).read_bytes() == (trained / METHOD).read_bytes()


def test_a_zip_file_has_the_same_bytes_each_time_and_only_what_is_needed(trained: Path, tmp_path: Path) -> None:
    assert cli(["export", str(trained), str(tmp_path / "a.zip")]) == 0
    export(trained, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == sorted(FILES)
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}, "whenever it was made"
        everything = b"".join(archive.read(name) for name in FILES)
        recipe = yaml.safe_load(archive.read(RECIPE))
    assert {Path(name).suffix for name in FILES} == {".md", ".json", ".yaml", ".safetensors"}
    assert b"secret place" not in everything, "where its owner's data lie is nobody's business"
    assert recipe["task"]["train"] == "train.jsonl"


def test_a_file_that_holds_no_run_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.zip"):
        export(trained, tmp_path / "a.tar")
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4 torn")
    with pytest.raises(UserError, match=r"torn\.zip: damaged"):
        local_run(tmp_path / "torn.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "no run")
    with pytest.raises(UserError, match=r"other\.zip holds no run: there is no meta\.json"):
        local_run(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(METHOD, bytes(10_000_000))
    with pytest.raises(UserError, match="would unpack to 10,000,000 bytes"):
        local_run(tmp_path / "bomb.zip")


def test_only_the_files_of_a_run_are_unpacked(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("../outside.txt", "climbs out")
        archive.writestr("code.py", "print('hello')")
    assert {path.name for path in local_run(tmp_path / "a.zip").iterdir()} == set(FILES)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub calls its HTTP library
def test_a_run_pushed_to_a_hub_is_loaded_from_there(
    trained: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["push", str(trained), "someone/eyes", "--private"]) == 0
    said = capsys.readouterr().out
    assert f"{hub.address}/someone/eyes/commit/" in said
    assert "lies on this machine alone" in said
    [(sha, files)] = hub.commits["someone/eyes"]
    assert set(files) == set(FILES)
    assert hub.private["someone/eyes"]
    assert hub.large, "weights go beside the commit, as a hub wants large files"
    assert answers("hf://someone/eyes") == answers(f"hf://someone/eyes@{sha}") == answers(trained)
    assert verify_reference_answers("hf://someone/eyes")["same"]
    results = perceptune.evaluate(
        "hf://someone/eyes", into=tmp_path, task={"name": "jsonl", "train": str(_data(trained))}
    )
    assert results["evaluated_samples"] == 8
    with pytest.raises(UserError, match="need a folder"):
        perceptune.evaluate("hf://someone/eyes")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub calls its HTTP library
def test_a_name_alone_is_on_the_hub_and_is_kept_for_offline_use(
    trained: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(trained, "someone/eyes")
    first, expected = hub.commits["someone/eyes"][0][0], answers(trained)
    push(trained, "someone/eyes", message="again")
    monkeypatch.chdir(tmp_path)
    assert answers("someone/eyes") == expected
    options = {"revision": first, "overrides": ["cache.features=off"]}
    assert perceptune.load("someone/eyes", **options).recipe.name == perceptune.load(trained).recipe.name
    hub.stop()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert answers("someone/eyes") == expected
    with pytest.raises(UserError, match="cannot fetch hf://someone/ears"):
        perceptune.load("someone/ears")
    (tmp_path / "someone").mkdir()
    with pytest.raises(UserError, match="`someone/ears` is not a run folder"):
        perceptune.load("someone/ears")
    with pytest.raises(UserError, match=r"revision `main`: .* is no run on a hub"):
        perceptune.load(trained, revision="main")


def _data(run: Path) -> Path:
    return Path(yaml.safe_load((run / RECIPE).read_text())["task"]["train"])


def test_what_a_hub_refuses_is_told_in_a_line(trained: Path, hub: Hub) -> None:
    with pytest.raises(UserError, match=r"cannot fetch hf://nobody/nothing"):
        perceptune.load("hf://nobody/nothing")
    with pytest.raises(UserError, match=r"no address of a run: write hf://USER/NAME"):
        perceptune.load("hf://nobody")
    with pytest.raises(UserError, match="write USER/NAME"):
        push(trained, "../../x")
    hub.refuses = True
    with pytest.raises(UserError, match=r"cannot push to `someone/eyes`.*403"):
        push(trained, "someone/eyes")
    assert hub.commits == {}
    hub.stop()
    with pytest.raises(UserError, match="cannot push to `someone/eyes`"):
        push(trained, "someone/eyes")


def test_a_training_keeps_answers_that_verify_reproduces(trained: Path) -> None:
    proof = json.loads((trained / PROOF).read_text())
    assert len(proof["samples"]) == 4
    assert len({row["answer"] for row in proof["samples"]}) > 1
    found = verify_reference_answers(trained)
    assert found["same"]
    assert [row["state"] for row in found["answers"]] == ["same"] * 4
    assert not any((found["base"], found["versions"], found["dtype"], found["method"]))


def test_verify_says_what_differs(run: Path, dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof = json.loads((run / PROOF).read_text())
    changed, *_ = rows = proof["samples"]
    Image.new("RGB", (9, 9), "white").save(tmp_path / "other.png")
    rows[1]["media"]["image"]["path"] = str(tmp_path / "other.png")
    rows[2]["media"]["image"]["path"] = str(tmp_path / "gone.png")
    changed["answer"] += "!"
    proof["versions"]["torch"], proof["method"] = "1.0", "0" * 64
    (run / PROOF).write_text(json.dumps(proof))
    assert cli(["verify", str(run), "eval.dtype=bfloat16"]) == 1
    said = capsys.readouterr().out
    for part in ("differs:", "medium changed", "medium missing", "torch: 1.0 then", "another file", "eval.dtype"):
        assert part in said
    meta = json.loads((run / META).read_text())
    meta["base"]["lm"]["fingerprint"] = "f" * 64
    (run / META).write_text(json.dumps(meta))
    found = verify_reference_answers(run)
    assert [*found["base"]] == ["lm"]
    assert not found["same"]
    assert found["answers"] == [], "another model's answers prove nothing"


def test_the_answers_of_another_methods_file_prove_nothing(run: Path) -> None:
    proof = json.loads((run / PROOF).read_text())
    (run / PROOF).write_text(json.dumps(proof | {"method": "0" * 64}))
    found = verify_reference_answers(run)
    assert {row["state"] for row in found["answers"]} == {"same"}
    assert not found["same"]


def test_verify_finds_another_method_by_its_answers(run: Path) -> None:
    tensors = {name: tensor * 3 + 1 for name, tensor in load_file(run / METHOD).items()}
    save_file(tensors, run / METHOD)
    found = verify_reference_answers(run)
    assert found["method"]
    assert "differs" in {row["state"] for row in found["answers"]}


def test_a_run_without_answers_can_be_given_some(run: Path) -> None:
    (run / PROOF).unlink()
    with pytest.raises(UserError, match="--record"):
        verify_reference_answers(run)
    assert cli(["verify", str(run), "--record"]) == 0
    [first, *_] = json.loads((run / PROOF).read_text())["samples"]
    assert base64.b64decode(first["media"]["image"]["data"]).startswith(b"\x89PNG")
    assert verify_reference_answers(run)["same"]
    (run / PROOF).write_text("[]")
    with pytest.raises(UserError, match=r"proof\.json: damaged"):
        verify_reference_answers(run)


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_made_up_media_can_be_read(modality: str, tmp_path: Path) -> None:
    for sample in synthetic_samples([modality]):
        data = sample.media[modality]
        assert isinstance(data, bytes)
        assert len(data) < 20_000
        (tmp_path / "medium").write_bytes(data)
        assert shots(modality, tmp_path / "medium", "x")


def test_base_models_may_lie_elsewhere_if_they_are_the_same(run: Path, dwarfs: Path, tmp_path: Path) -> None:
    expected = answers(run)
    for name in (RECIPE, META):
        (run / name).write_text((run / name).read_text().replace(str(dwarfs), "/elsewhere"))
    with pytest.raises(UserError, match="/elsewhere/lm"):
        perceptune.load(run)
    places = [f"lm.id={dwarfs / 'lm'}", f"encoders.image.id={dwarfs / 'encoder'}"]
    samples = [*synthetic_samples(["image"]), perceptune.Sample("text", {}, "color?")]
    assert perceptune.load(run, overrides=["cache.features=off", *places]).answer(samples) == expected
    with pytest.raises(UserError, match="another base model"):
        perceptune.load(run, overrides=[f"lm.id={dwarfs / 'lm'}", f"encoders.image.id={dwarfs / 'vit'}"])


def test_a_run_that_was_only_saved_can_be_shared(dwarfs: Path, tmp_path: Path) -> None:
    """Without a task, a log, results or stored answers."""
    model = perceptune.build(support.recipe(dwarfs / "lm", dwarfs / "encoder"))
    save_run(tmp_path / "run", model)
    export(tmp_path / "run", tmp_path / "a.zip")
    assert verify_reference_answers(tmp_path / "a.zip")["same"]
    assert "Not evaluated yet" in (local_run(tmp_path / "a.zip") / CARD).read_text()


def test_the_answers_kept_are_those_of_the_best_one_not_the_last(
    dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose first evaluation is its best: what it answers with is older than what was in memory at the end."""
    values = iter([0.9, 0.1, 0.1])
    judged = Validator.validate

    def graded(self: Validator, step: int) -> EvalOutput:
        found = judged(self, step)
        found.summary[self.task.metric] = next(values)
        return found

    monkeypatch.setattr(Validator, "validate", graded)
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl")
    given |= {"train": support.train_section(steps=60, batch_size=8), "eval": {"every": 20}}
    perceptune.train(given, tmp_path / "run")
    assert verify_reference_answers(tmp_path / "run")["same"]
