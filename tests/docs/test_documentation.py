"""The documentation is executed: commands, code, help texts, links."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
from PIL import Image

import generated
from benchmarks.__main__ import run as benchmarks
from perceptune.cli.main import run as cli
from sounds import save_sounds
from support import save_data

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Run by `make demo` and `make smoke` on the real models, not here; `assets` needs the network, the imports published
# weights (tests/e2e/test_official.py and tests/unit/test_encoder_import.py have made-up ones), `serve` does not end
# (test_serving_page.py).
ELSEWHERE = ("chat", "demo", "assets", "import-epalm", "import-encoder", "serve")
BENCHMARKS = "python -m benchmarks "


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [textwrap.dedent(code) for _, code in found]


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("perceptune ", BENCHMARKS))]


@pytest.fixture
def desk(dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the documentation assumes one: `my.jsonl`, some pictures and sounds, a model folder."""
    data = shutil.copytree(dwarfs / "data", tmp_path / "desk")
    (data / "train.jsonl").rename(data / "other.jsonl")
    save_data(data, rows=24, name="my")
    (data / "photos").mkdir()
    for name in ("photos/001.jpg", "photo.jpg"):
        Image.new("RGB", (30, 20), "red").save(data / name)
    for name in ("train", "test"):
        save_sounds(data / "sounds", name=name)
    shutil.copy(data / "sounds/train0.wav", data / "sounds/001.wav")
    shutil.copytree(dwarfs / "lm", data / "my-lm")
    (data / "predictions.jsonl").write_text('{"id": 1, "prediction": "a dog runs"}\n')
    (data / "references.jsonl").write_text('{"id": 1, "references": ["a dog is running", "a brown dog"]}\n')
    monkeypatch.chdir(data)
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(tmp_path / "cache"))
    return data


def test_the_pages_hold_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_run(page: Path, desk: Path, dwarfs: Path) -> None:
    """Each command as written; only the real models are replaced by dwarfs and the training is cut to two steps."""
    for code in blocks(page, "python"):
        if "tarfile" in code or "write_text" in code:  # makes the files that a command reads
            exec(compile(code, str(page), "exec"), {})
    for command in commands(page):
        if command.startswith(BENCHMARKS):
            words = command.removeprefix(BENCHMARKS).replace("opt-125m+vit-b16", "tiny").split()
            assert benchmarks(["--rounds", "1", *words]) == 0, command
            continue
        words = shlex.split(command, comments=True)[1:]
        if words[0] in ELSEWHERE or "--models" in words:
            continue
        words = _in_small(words, desk, dwarfs)
        if "runs/mine" in words and words[0] != "train" and not (desk / "runs/mine").exists():
            _train(desk, dwarfs)
        assert cli(words) in (0, 1) if words[0] == "doctor" else cli(words) == 0, command


def _in_small(words: list[str], desk: Path, dwarfs: Path) -> list[str]:
    """A command with the real models replaced by dwarfs, and a training cut short."""
    words = [str(dwarfs / "vit") if word.startswith("google/vit") else word for word in words]
    two_steps = ["train.steps=2", "train.batch_size=2"]
    models = [f"lm.id={dwarfs / 'lm'}", f"encoders.image.id={dwarfs / 'encoder'}", "method.n_levels=2"]
    if words[0] == "build-instructblip":
        return [*words, "--lm", str(dwarfs / "lm"), "--encoder", str(dwarfs / "encoder")]
    if "backbone=instructblip" in words:
        return words + two_steps
    if words[0] == "train" and "--resume" not in words:
        shutil.rmtree(desk / words[words.index("--run") + 1], ignore_errors=True)
        steps = two_steps[1:] if "train.steps=0" in words else two_steps
        return [*words, *_dwarfs_for(words, dwarfs), "method.n_levels=2", *steps]
    if words[0] == "compare":
        return words + models + two_steps
    if words[:2] == ["data", "check"] and words[2].endswith(".yaml"):
        return words + models[:1]
    if words[0] == "features" and words[1] not in ("info", "verify", "gc"):
        return words + models
    return words


def _dwarfs_for(words: list[str], dwarfs: Path) -> list[str]:
    """What replaces the default models of a training."""
    lm = [] if "--lm" in words else ["--lm", str(dwarfs / "lm")]
    if "audio" in words:
        return [*lm, f"encoders.audio.id={dwarfs / 'encoder'}"]
    return lm if "--encoder" in words else [*lm, "--encoder", str(dwarfs / "encoder")]


def _train(desk: Path, dwarfs: Path) -> None:
    given = ["--lm", str(dwarfs / "lm"), "--encoder", str(dwarfs / "encoder"), "--run", "runs/mine"]
    keys = ["method.n_levels=2", "train.steps=2", "train.batch_size=2"]
    assert cli(["train", "small", "--data", str(desk / "my.jsonl"), *given, *keys]) == 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads what transformers renamed
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "serving.md"], ids=lambda page: page.name)
def test_documented_python_runs(page: Path, desk: Path, dwarfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"__name__": "documentation"}  # a later block of a page goes on with those of the earlier ones
    for code in blocks(page, "python"):
        ready = code.replace('"lm": "default"', f'"lm": "{dwarfs / "lm"}"')
        ready = ready.replace('{"image": "default"}', f'{{"image": "{dwarfs / "encoder"}"}}')
        ready = ready.replace('"method": "epalm"', '"method": {"name": "epalm", "n_levels": 2}')
        if "runs/mine" in ready:
            _train(desk, dwarfs)
        if "mine-hf" in ready and not (desk / "mine-hf").exists():
            _train(desk, dwarfs)
            assert cli(["export", "runs/mine", "mine-hf", "--to", "transformers"]) == 0
        exec(compile(ready, str(page), "exec"), names)


def test_the_readme_has_code_that_was_run() -> None:
    assert len(blocks(ROOT / "README.md", "python")) >= 2


@pytest.mark.parametrize("file", generated.GENERATED)
def test_generated_pages_are_up_to_date(file: str) -> None:
    """`make docs` writes them anew. White space is ignored: argparse wraps differently from one Python to the next."""
    written = (ROOT / "docs" / file).read_text(encoding="utf-8")
    assert written.split() == generated.GENERATED[file]().split(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, flags=re.M)
    assert targets
    for target in targets.group(1).split():
        assert target in ("clean",) or re.search(rf"^{target}:.*## ", text, flags=re.M), target
