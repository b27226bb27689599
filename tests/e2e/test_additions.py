"""One file adds a method, an encoder, a task, a metric or a command, in a folder beside the package's own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import ViTMSNConfig, ViTMSNModel

import generated
from forks import Fork
from perceptune.cli.main import run as cli
from perceptune.config.registry import LEAF_KINDS, leaves

TESTS = Path(__file__).parents[1]
ADDED = {
    "methods": (
        "middle_token",
        '''"""A token in the middle: one connection and a plain soft prompt, from layer 1 on."""

from perceptune.methods.slots.base import Injection

VARIANTS = {"middle-token": {"shared_connector": True, "prompt": "plain", "first": 1, "last": 2}}
COUNTS = {"middle-token": "C + P"}


class MiddleToken(Injection):
    """Enters layers 1 and 2."""


METHOD = MiddleToken
''',
    ),
    "encoders": (
        "msn",
        '''"""ViT-MSN."""

from perceptune.encoders.base import BILINEAR, IMAGENET, BlockParts, ViTEncoder


class MaskedSiamese(ViTEncoder):
    """[CLS] is token 0."""

    MODELS = {"vit_msn": "ViTMSNModel"}
    BLOCKS = "layers"
    PARTS = BlockParts(("layernorm_before", "layernorm_after"), "attention", "o_proj")
    NORM = "layernorm"
    UNUSED = ("embeddings.mask_token",)

    @classmethod
    def published(cls, config):
        return {"size": config.image_size, "resample": BILINEAR, **IMAGENET}

    def embed(self, x):
        return self.tower.embeddings(x, interpolate_pos_encoding=True)


ENCODER = MaskedSiamese
MODEL_TYPES = tuple(ENCODER.MODELS)
''',
    ),
    "tasks": (
        "tab_lines",
        '''"""Lines of an image, a question and an answer, between tabs."""

from pathlib import Path

from perceptune.config.registry import leaf
from perceptune.data.tasks.base import Task, check_split
from perceptune.types import Sample


class TabLines(Task):
    """One file, which is both splits."""

    class Options(Task.Options):
        """Where the file lies."""

        file: Path

    data_option = "file"
    splits = ("train", "test")
    metric = "first_letter"

    def __init__(self, options):
        self._file = options.file

    def samples(self, split):
        check_split(split, self.splits)
        rows = [line.split("\\t") for line in self._file.read_text().splitlines()]
        return [Sample(str(n), {"image": self._file.parent / i}, q, (a,)) for n, (i, q, a) in enumerate(rows)]

    def score(self, predictions, samples):
        return leaf("metrics", "first-letter").module.score(predictions, [sample.targets for sample in samples])


TASK = TabLines
''',
    ),
    "metrics": (
        "first_letter",
        '''"""First letters: a prediction counts if it begins as one of its references does."""

from typing import Literal

from pydantic import BaseModel

from perceptune.data.metrics.base import Needs, scored_by_group, zipped

NEEDS = Needs(prediction_key="letter", not_counted=("unsure", True), by_group="first_letter")


class Options(BaseModel):
    dialect: Literal["exact", "any-case"] = "any-case"


def score(predictions, references, options=Options(), *, groups=None):
    def form(text):
        return text[:1] if options.dialect == "exact" else text[:1].lower()

    hits = [form(given) in {form(one) for one in accepted} for given, accepted in zipped(predictions, references)]
    return scored_by_group(map(float, hits), groups, {"metric": "first-letter"}, "first_letter")
''',
    ),
    "commands": (
        "print_metric",
        '''"""Print one metric of an evaluated run.

Examples:
  perceptune print-metric runs/mine accuracy
"""

import json
from pathlib import Path

from perceptune.errors import UserError, nearest


def add_arguments(parser):
    parser.add_argument("run", help="run folder")
    parser.add_argument("metric", help="key of results.json")
    parser.add_overrides("metric=other")


def run(options):
    results = json.loads((Path(options.run) / "results.json").read_text())
    name = options.overrides[-1].partition("=")[2] if options.overrides else options.metric
    if name not in results:
        raise UserError(f"no metric `{name}`{nearest(name, results['metrics'])}")
    print(results[name])
    return 0
''',
    ),
}


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The name of each addition by its kind."""
    names = {}
    for kind, (stem, code) in ADDED.items():
        package = importlib.import_module(f"perceptune.{LEAF_KINDS[kind]}")
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{stem}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
        names[kind] = stem.replace("_", "-")
    leaves.cache_clear()
    yield names
    leaves.cache_clear()
    for kind, (stem, _) in ADDED.items():
        sys.modules.pop(f"perceptune.{LEAF_KINDS[kind]}.{stem}", None)


def test_lists_help_and_documentation_take_them_up(
    added: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, name in added.items():
        assert cli(["list", kind, "--json"]) == 0
        assert name in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    table = generated.recipe_keys()
    assert "| `middle-token` | A token in the middle" in table
    assert "trains `C + P`" in table
    assert "## task: `tab-lines`" in table
    assert "| `file` |" in table
    for name in ("msn", "tab-lines", "first-letter"):
        assert f"\n| `{name}` | " in table
    assert "Dialects: exact, any-case" in table
    assert "## print-metric" in generated.command_line()
    for words, said in (
        (["--help"], "print one metric"),
        (["print-metric", "--help"], "Examples:\n  perceptune print"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli(words)
        assert ended.value.code == 0
        assert said in capsys.readouterr().out


def test_the_contract_holds_for_an_added_method(added: dict[str, str], tmp_path: Path) -> None:
    """The tests of `tests/contract` are collected again, in a fork, and run for the new name."""

    def contract() -> int:
        for name in [name for name in sys.modules if name == "rows" or "contract" in name.split(".")]:
            del sys.modules[name]  # which know the names of before
        files = [str(TESTS / "contract/test_methods.py"), str(TESTS / "contract/test_split.py")]
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--whole"]
        return int(pytest.main([*options, "-k", "middle-token and llama", *files]))

    fork = Fork(contract, tmp_path / "said")
    code, said = fork.wait(), (tmp_path / "said").read_text()
    assert code == 0, said[-3000:]
    assert int(said.rpartition(" passed")[0].split()[-1]) >= 17


def test_all_five_work_together(
    added: dict[str, str], dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
    ViTMSNModel(ViTMSNConfig(**shape, image_size=16, patch_size=8)).save_pretrained(tmp_path / "encoder")
    rows = [json.loads(line) for line in (dwarfs / "data/train.jsonl").read_text().splitlines()]
    lines = [f"{dwarfs / 'data' / row['image']}\t{row['prompt']}\t{row['targets'][0]}\n" for row in rows]
    (tmp_path / "rows.tsv").write_text("".join(lines))
    run = str(tmp_path / "run")
    words = ["train", "--run", run, "--lm", str(dwarfs / "lm"), "--encoder", str(tmp_path / "encoder"), "--method",
             "middle-token", "--task", "tab-lines", "--data", str(tmp_path / "rows.tsv")]  # fmt: skip
    assert cli([*words, "method.n_levels=2", "train.steps=2", "train.batch_size=2", "train.hold_out=null"]) == 0
    assert cli(["eval", run]) == 0
    capsys.readouterr()
    assert cli(["show", run, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["method"], shown["trainable"]) == ("middle-token", 24 * 32 + 32 + 10 * 32)
    assert cli(["print-metric", run, "accuracy", "metric=first_letter"]) == 0
    first = float(capsys.readouterr().out)
    assert 0 <= first <= 1
    assert cli(["print-metric", run, "first_leter"]) == 2
    assert "did you mean `first_letter`" in capsys.readouterr().err
    references = tmp_path / "references.jsonl"
    said = [json.loads(line) for line in (Path(run) / "predictions.jsonl").read_text().splitlines()]
    held = [{"id": row["id"], "references": row["targets"]} for row in said]
    references.write_text("".join(json.dumps(row) + "\n" for row in [*held, {**held[0], "id": "x", "unsure": True}]))
    assert cli(["score", f"{run}/predictions.jsonl", str(references), "--metric", "first-letter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["first_letter"] == pytest.approx(first)
