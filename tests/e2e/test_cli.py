"""The real commands on dwarfs: what they print, what they exit with, how they refuse what is wrong."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import perceptune
import support
from forks import Fork
from perceptune.cli.main import run as cli

Said = Callable[[], tuple[str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: tuple(capsys.readouterr())  # type: ignore[return-value]


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli") / "run"
    perceptune.train(support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl"), run)
    return run


def flags(dwarfs: Path, *more: str) -> list[str]:
    return [
        "train", "--lm", str(dwarfs / "lm"), "--encoder", str(dwarfs / "encoder"), "--data",
        str(dwarfs / "data/train.jsonl"), "method.n_levels=2", "train.steps=2", "train.batch_size=2",
        "train.hold_out=null", *more,
    ]  # fmt: skip


def test_train_works_from_flags_alone_and_eval_answers_and_show_follow(
    dwarfs: Path, tmp_path: Path, said: Said
) -> None:
    run, data = tmp_path / "mine", support.save_data(tmp_path / "data", rows=24)
    words = ["--lm", str(dwarfs / "lm"), "--encoder", str(dwarfs / "encoder"), "--method", "epalm-lin"]
    brief = ["method.n_levels=2", "train.steps=2", "train.batch_size=2"]
    assert cli(["train", "--data", str(data), *words, "--run", str(run), *brief]) == 0
    out, err = said()
    assert "on 6 samples with 6 media of split `test`" in out
    assert f"{data}: JSON lines (--task jsonl): 24 samples with 24 images" in err
    assert "6 of 24 media are held out (train.hold_out.media)" in err
    assert cli(["eval", str(run), "--json"]) == 0
    assert json.loads(said()[0])["evaluated_samples"] == 6
    row = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])
    assert cli(["answer", str(run), "--image", row["media"]["image"], row["prompt"]]) == 0
    assert said()[0].rstrip("\n") == row["answer"]
    assert cli(["show", str(run), "--json"]) == 0
    shown = json.loads(said()[0])
    assert shown["trainable"] == 24 * 32 + 32
    assert cli(["show", str(run)]) == 0
    assert "800 of" in said()[0]


def test_commands_print_tables_for_people(trained: Path, said: Said) -> None:
    for arguments, words in [
        (["list", "methods"], "epalm-pt"),
        (["list", "recipes"], "paper/epalm"),
        (["show", "paper/epalm"], "24,949,760"),
        (["show", "paper/epalm-350m"], "all 24 layers run with gradient"),
        (["eval", str(trained), "--control"], "media shuffled"),
        (["assets", "--list"], "smollm2-135m-instruct"),
    ]:
        assert cli(arguments) == 0
        assert words in said()[0], arguments


@pytest.mark.parametrize("kind", ["methods", "encoders", "tasks", "metrics", "recipes"])
def test_list_json_is_a_list_of_objects_with_a_name(kind: str, said: Said) -> None:
    assert cli(["list", kind, "--json"]) == 0
    entries = json.loads(said()[0])
    assert entries
    assert all(entry["name"] for entry in entries)


def test_doctor_reports_and_exits_by_what_it_found(said: Said, tmp_path: Path) -> None:
    assert cli(["doctor", "--json"]) in (0, 1)
    checks = {check["name"]: check["state"] for check in json.loads(said()[0])}
    assert checks["python"] == checks["torch"] == checks["transformers"] == "ok"
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{lm: default, task: {name: jsonl, train: nowhere.jsonl}}")
    assert cli(["doctor", str(recipe)]) == 1
    assert "nowhere.jsonl" in said()[0]


def image_bomb(path: Path) -> Path:
    """A PNG header that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_bad_pictures_and_questions_are_refused_by_name(
    trained: Path, dwarfs: Path, tmp_path: Path, said: Said
) -> None:
    whole = (dwarfs / "data/train0.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    image_bomb(tmp_path / "bomb.png")
    for name in ("torn.png", "empty.png", "text.png", "bomb.png", "nowhere.png"):
        assert cli(["answer", str(trained), "--image", str(tmp_path / name), "color?"]) == 2
        out, err = said()
        assert out == ""
        assert err.startswith("error: ")
        assert name in err
        assert err.count("\n") == 1
    assert cli(["answer", str(trained), "--image", str(dwarfs / "data/train0.png"), "  "]) == 2
    assert "the question has no text" in said()[1]


def test_an_image_beyond_pillows_own_limit_is_refused_without_a_warning(trained: Path, tmp_path: Path) -> None:
    """In a process of its own: the bomb warning of Pillow must not become the message."""
    bomb = image_bomb(tmp_path / "bomb.png")

    def answer() -> int:
        warnings.resetwarnings()  # as a user has them: none is an error
        return cli(["answer", str(trained), "--image", str(bomb), "color?"])

    assert Fork(answer, tmp_path / "said").wait() == 2
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    assert "Warning" not in said
    assert "bomb.png" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "demoo"], "no recipe `demoo`.*did you mean `demo`"),
        (["train"], "nothing to train"),
        (["train", "demo", "train.step=3"], "unknown key `train.step`; did you mean `steps`"),
        (["train", "demo", "method=epal"], "unknown method `epal`; did you mean `epalm`"),
        (["train", "demo", "task=easyvqa"], "unknown task `easyvqa`"),
        (["train", "demo", "method.n_level=3"], "unknown key `n_level`"),
        (["show", "paper/epalmx"], "no recipe"),
        (["train", "demo", "method=epalm.pt"], "method `epalm.pt` cannot be imported"),
        (["train", "demo", "task=json.decoder"], "defines no `TASK`"),
        (["eval", "nowhere"], "`nowhere` is not a run folder"),
        (["answer", "nowhere", "why?"], "`nowhere` is not a run folder"),
        (["train", "--resume", "--run", "nowhere"], "holds no run to resume"),
        (["assets", "smollm2"], "smollm2-135m-instruct"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(arguments: list[str], words: str, said: Said, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    import re

    monkeypatch.chdir(tmp_path)
    code = cli(arguments)
    err = said()[1]
    assert code == 2
    assert re.search(words, err), err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "runs"])


def test_models_that_cannot_be_spliced_are_refused(dwarfs: Path, tmp_path: Path, said: Said) -> None:
    assert cli(flags(dwarfs, "--run", str(tmp_path / "a"), f"lm.id={dwarfs / 'encoder'}")) == 2
    assert "of model type `dinov2`, for which transformers has no causal LM" in said()[1]
    assert cli(flags(dwarfs, "--run", str(tmp_path / "b"), "lm.layers=model.blocks")) == 2
    err = said()[1]
    assert "tried `model.blocks`" in err
    assert "`model.layers`" in err
    assert cli(flags(dwarfs, "--run", str(tmp_path / "c"), f"encoders.image.id={dwarfs / 'lm'}")) == 2
    assert "llama" in said()[1]
    assert cli(flags(dwarfs, "--run", str(tmp_path / "d"), f"lm.id={dwarfs / 'lmm'}")) == 2
    assert f"did you mean `{dwarfs / 'lm'}`" in said()[1]


def test_a_mistake_never_damages_an_existing_run(trained: Path, dwarfs: Path, said: Said) -> None:
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    assert cli(flags(dwarfs, "--run", str(trained))) == 2
    assert "holds a run already" in said()[1]
    assert cli(["train", "--resume", "--run", str(trained), "train.lr=1"]) == 2
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_damaged_models_are_refused(dwarfs: Path, tmp_path: Path, said: Said) -> None:
    torn = shutil.copytree(dwarfs / "lm", tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:5000])
    assert cli(flags(dwarfs, "--run", str(tmp_path / "a"), f"lm.id={torn}")) == 2
    assert "torn" in said()[1]
    other = shutil.copytree(dwarfs / "lm", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    assert cli(flags(dwarfs, "--run", str(tmp_path / "b"), f"lm.id={other}")) == 2
    assert "mismatched" in said()[1]


def test_runs_that_cannot_be_loaded_exit_with_2(trained: Path, dwarfs: Path, tmp_path: Path, said: Said) -> None:
    newer = shutil.copytree(trained, tmp_path / "newer")
    meta = json.loads((newer / "meta.json").read_text())
    (newer / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    for command in (["eval", str(newer)], ["answer", str(newer), "why?"], ["show", str(newer)]):
        assert cli(command) == 2
        assert "run format 99" in said()[1]
    other = shutil.copytree(trained, tmp_path / "other")
    text = (other / "run.yaml").read_text().replace(str(dwarfs / "lm"), str(dwarfs / "opt"))
    (other / "run.yaml").write_text(text)
    assert cli(["answer", str(other), "why?"]) == 2
    assert "trained on another base model" in said()[1]


def test_evaluation_finds_out_before_it_generates(trained: Path, said: Said) -> None:
    assert cli(["eval", str(trained), "--samples", "0"]) == 2
    assert "at least 1" in said()[1]
    assert cli(["eval", str(trained), "--samples", "1", "--control"]) == 2
    assert "two different media" in said()[1]
    assert cli(["eval", str(trained), "--split", "tset"]) == 2
    assert "unknown split" in said()[1]


def test_how_a_run_answers_can_be_changed_but_not_what_it_is(trained: Path, dwarfs: Path, said: Said) -> None:
    assert cli(["eval", str(trained), "--json", "decode.beams=3", "decode.max_new_tokens=2"]) == 0
    assert json.loads(said()[0])["decoding"]["beams"] == 3
    picture = ["--image", str(dwarfs / "data/train0.png")]
    assert cli(["answer", str(trained), *picture, "what is a=b?", "decode.max_new_tokens=1"]) == 0
    assert len(said()[0].strip()) <= 1
    assert cli(["eval", str(trained), "train.lr=1"]) == 2
    assert "only `cache`, `decode` and `eval` keys" in said()[1]


def test_eval_says_when_it_judges_what_was_learned_by_heart(trained: Path, said: Said) -> None:
    assert cli(["eval", str(trained), "--split", "train"]) == 0
    assert "the run was trained on it" in said()[0]


def test_a_folder_that_cannot_be_written_is_one_line(dwarfs: Path, tmp_path: Path, said: Said) -> None:
    (tmp_path / "file").write_text("")
    assert cli(flags(dwarfs, "--run", str(tmp_path / "file/run"))) == 2
    assert "cannot be written" in said()[1]


def test_unknown_flags_exit_with_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(["train", "--lmm", "x"])
    assert stopped.value.code == 2
