"""Runs in LLaVA's layout, loaded by transformers in a process that cannot import this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import perceptune
from llavas import CASES, built, recipe, save_parts
from perceptune.cli.main import run as cli
from perceptune.data.build_task import make_task
from perceptune.models.run_folder import save_run
from perceptune.models.run_location import RECIPE
from perceptune.models.slots.model import SlotModel
from perceptune.types import IN_TEXT, Decoding

NEW = 6  # tokens
# Reads {folder: [[picture, question], ...]}, writes logits and greedy tokens of each.
ALONE = f"""
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "perceptune":
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
try:
    import perceptune
except ImportError:
    pass
else:
    raise SystemExit("perceptune can be imported")
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

found = {{}}
for folder, rows in json.load(sys.stdin).items():
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is LlavaForConditionalGeneration and type(processor) is LlavaProcessor
    assert model.dtype is torch.float32
    for number, (picture, question) in enumerate(rows):
        content = [{{"type": "image", "path": picture}}, {{"type": "text", "text": question}}]
        batch = processor.apply_chat_template(
            [{{"role": "user", "content": content}}], tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True,
        )
        width = batch["input_ids"].shape[1]
        with torch.no_grad():
            found[f"{{folder}} {{number}} logits"] = model(**batch).logits[0]
        found[f"{{folder}} {{number}} ids"] = batch["input_ids"][0]
        found[f"{{folder}} {{number}} answer"] = model.generate(**batch, max_new_tokens={NEW})[0, width:].contiguous()
save_file(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each case."""
    place = tmp_path_factory.mktemp("llava")
    parts = save_parts(place / "parts")
    found = {}
    for number, (name, (method, lm, changes)) in enumerate(CASES.items()):
        found[name] = place / f"run{number}"
        save_run(found[name], built(recipe(parts, method, lm, **changes)))
    return found


@pytest.fixture(scope="module")
def folders(runs: dict[str, Path]) -> dict[str, Path]:
    """What `perceptune export --to llava` makes of them."""
    found = {name: run.with_name(f"{run.name}-llava") for name, run in runs.items()}
    for name, run in runs.items():
        assert cli(["export", str(run), str(found[name]), "--to", "llava"]) == 0
    return found


def samples_of(run: Path) -> list[perceptune.Sample]:
    """The same question of two pictures."""
    return list(make_task(perceptune.load_recipe(run / RECIPE)).samples("train"))[::2]


@pytest.fixture(scope="module")
def alone(
    runs: dict[str, Path], folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    """Logits, ids and answers of transformers alone."""
    out = tmp_path_factory.mktemp("alone") / "found.safetensors"
    asked = {
        str(folders[name]): [[str(sample.list_media("image")[0]), sample.prompt] for sample in samples_of(run)]
        for name, run in runs.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(out)], check=False, input=json.dumps(asked), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return load_file(out)


@pytest.mark.parametrize("case", CASES)
def test_transformers_alone_gives_the_logits_and_answers_of_the_run(
    case: str, runs: dict[str, Path], folders: dict[str, Path], alone: dict[str, Tensor]
) -> None:
    model = perceptune.load(runs[case])
    assert isinstance(model, SlotModel)
    for number, sample in enumerate(samples_of(runs[case])):
        logits, ids, answer = (alone[f"{folders[case]} {number} {what}"] for what in ("logits", "ids", "answer"))
        prompt = model.prompt([sample])
        assert torch.equal(ids[prompt.ids[0] != IN_TEXT], prompt.ids[0][prompt.ids[0] != IN_TEXT])
        with torch.no_grad():
            ours = model.lm(prompt.ids, prompt.mask, prompt.slots)[0]
        torch.testing.assert_close(logits[:, : ours.shape[1]], ours, rtol=0, atol=1e-4)
        [expected] = model.generate([sample], Decoding(max_new_tokens=NEW))
        assert answer[: len(expected)].tolist() == expected
        assert set(answer[len(expected) :].tolist()) <= {model.text.eos, model.text.pad}


@pytest.mark.parametrize("case", CASES)
def test_the_picture_matters_to_the_logits(case: str, folders: dict[str, Path], alone: dict[str, Tensor]) -> None:
    first, second = (alone[f"{folders[case]} {number} logits"][-1] for number in (0, 1))
    assert float((first - second).abs().max()) > 0.01


def test_what_a_folder_says(folders: dict[str, Path]) -> None:
    config = json.loads((folders["linear"] / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["projector_hidden_act"] == "linear", "24 + 24 features are more than the LM's width of 32"
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-1, "full")
    assert json.loads((folders["mlp with LoRA"] / "config.json").read_text())["vision_feature_layer"] == -2
    assert "perceptune" not in "".join(
        file.read_text() for file in folders["linear"].iterdir() if file.suffix in (".json", ".jinja")
    )
    assert (folders["linear"] / "chat_template.jinja").is_file()
    tied = json.loads((folders["tied, no free row"] / "config.json").read_text())
    assert tied["tie_word_embeddings"]
    assert tied["text_config"]["vocab_size"] == tied["image_token_index"] + 1


def test_a_folder_that_is_there_stays(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["export", str(runs["linear"]), str(tmp_path), "--to", "llava"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert cli(["export", str(runs["linear"]), str(tmp_path / "new"), "--to", "llava", "--trust"]) == 2
    assert "--trust" in capsys.readouterr().err
