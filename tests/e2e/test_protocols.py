"""Few-shot, other data sets, starting from another run, frozen parts: each a recipe key."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.config.schema import EncoderConfig
from perceptune.data.build_task import make_task
from perceptune.encoders._encoder import Encoder
from perceptune.encoders._fit import ADAPTERS
from perceptune.errors import UserError
from perceptune.models.run_folder import METHOD, RECIPE
from perceptune.training.training_set import training_set
from perceptune.utils.run_log import read_log
from runs import recipe, tensors
from support import train_section


def ids_trained_on(given: dict[str, Any]) -> set[str]:
    model = perceptune.build(given)
    samples = training_set(model, make_task(model.recipe)).samples
    return {sample.id for sample in samples}


def test_smaller_choices_lie_in_larger_ones_and_follow_their_own_seed(dwarfs: Path) -> None:
    def chosen(samples: float | None, seed: int = 0, **more: Any) -> set[str]:
        return ids_trained_on(recipe(dwarfs, seed=seed, train=train_section(samples=samples, **more)))

    sizes = [2, 0.25, 0.5, 9, None]
    sets = [chosen(samples) for samples in sizes]
    assert [len(one) for one in sets] == [2, 3, 6, 9, 12]
    assert all(small < large for small, large in itertools.pairwise(sets))
    assert chosen(6, seed=1) != chosen(6, seed=0)
    assert chosen(6, seed=1, samples_seed=0) == chosen(6, seed=0)
    assert chosen(0.01) <= chosen(2), "a share is at least one sample"


@pytest.mark.parametrize("samples", [0, -1, 1.5, 1.0, 0.0])
def test_an_impossible_number_of_samples_is_refused(samples: float, dwarfs: Path) -> None:
    with pytest.raises(UserError, match=r"`train\.samples`: .*a fraction between 0 and 1"):
        perceptune.load_recipe(recipe(dwarfs, train=train_section(samples=samples)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions on each of ten pictures."""
    folder = tmp_path_factory.mktemp("pairs")
    support.save_data(folder, rows=10)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    twice = [row | {"prompt": prompt} for row in rows for prompt in ("color?", "which color is it?")]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
    return folder / "train.jsonl"


def test_a_part_of_the_training_data_is_held_out_by_whole_pictures(pairs: Path) -> None:
    given = {"task": {"name": "jsonl", "train": str(pairs)}, "train": {"hold_out": 0.3}}
    task = make_task(perceptune.load_recipe(given))
    assert task.splits == ("train", "held-out")
    kept, out = task.samples("train"), task.samples("held-out")
    assert (len(kept), len(out)) == (14, 6)
    pictures = [{sample.media["image"] for sample in rows} for rows in (kept, out)]
    assert pictures[0].isdisjoint(pictures[1])
    assert not [sample.id for sample in kept if sample.id in {sample.id for sample in out}]
    again = make_task(perceptune.load_recipe(given | {"seed": 5}))
    assert [sample.id for sample in again.samples("held-out")] == [sample.id for sample in out]
    everything = make_task(perceptune.load_recipe(given, ["train.hold_out=20"]))
    with pytest.raises(UserError, match="leaves nothing of split `train`"):
        everything.samples("train")


def test_what_is_held_out_chooses_the_best_and_is_not_trained_on(dwarfs: Path, tmp_path: Path, pairs: Path) -> None:
    given = recipe(dwarfs, task={"name": "jsonl", "train": str(pairs)}, eval={"every": 3})
    with pytest.raises(UserError, match=r"keep training samples for it by `train\.hold_out`"):
        perceptune.train(given, tmp_path / "a")
    given["train"] = train_section(hold_out=6)
    perceptune.train(given, tmp_path / "b")
    evaluations = [row for row in read_log(tmp_path / "b") if row["event"] == "eval"]
    assert [(row["split"], row["evaluated"]) for row in evaluations] == [("held-out", 6)] * 2
    assert not perceptune.evaluate(tmp_path / "b")["trained_on_this_split"]


def test_held_out_samples_are_judged_as_the_task_judges(pairs: Path) -> None:
    """Whatever a task says of itself, the task with a part held out says, too."""
    task_keys = {"name": "jsonl", "train": str(pairs), "metric": "accuracy_color", "lowercase": True}
    plain, held = (
        make_task(perceptune.load_recipe({"task": task_keys, "train": {"hold_out": hold_out}}))
        for hold_out in (None, 4)
    )
    for name in {name for name in dir(type(plain)) if not name.startswith("_")} - {"samples", "splits", "Options"}:
        if not callable(getattr(plain, name)):
            assert getattr(held, name) == getattr(plain, name), name
    assert (held.metric, held.clean(" Red.\n")) == ("accuracy_color", "red")
    rows = list(plain.samples("train"))
    assert held.score(["red"] * len(rows), rows) == plain.score(["red"] * len(rows), rows)


@pytest.fixture(scope="module")
def gray(dwarfs: Path) -> Path:
    """Data of another kind: pictures of one colour, asked in other words."""
    folder = dwarfs / "gray"
    folder.mkdir()
    rows = []
    for i in range(5):
        Image.new("RGB", (20, 18), (100 + i,) * 3).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": "which?", "targets": ["gray"], "answer_type": "color"})
    (folder / "gray.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "gray.jsonl"


def test_another_data_set_is_evaluated_with_its_gap(dwarfs: Path, tmp_path: Path, gray: Path) -> None:
    others = {"gray": {"task": {"name": "jsonl", "train": str(gray)}, "samples": 4, "decode": {"max_new_tokens": 2},
                   "text": {"template": "{prompt}"}}}  # fmt: skip
    train = train_section(steps=120, batch_size=8, save_every=200)
    perceptune.train(recipe(dwarfs, train=train, eval={"others": others}), tmp_path / "run")
    results = perceptune.evaluate(tmp_path / "run")
    found = results["others"]["gray"]
    assert (found["evaluated_samples"], found["split"], found["metric"]) == (4, "train", "accuracy")
    gap = found["gaps"]["accuracy"]
    assert gap["in"] == results["accuracy"] > 0
    assert gap["out"] == found["accuracy"]
    assert gap["difference"] == pytest.approx(gap["in"] - gap["out"])
    assert gap["interval"][0] <= gap["difference"] <= gap["interval"][1]
    rows = [json.loads(line) for line in (tmp_path / "run/predictions_gray.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(len(row["raw"]) <= 2 for row in rows), "in its own decoding"
    own = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert max(len(row["raw"]) for row in own) > 2, "which ends with it"


def test_a_data_set_given_at_evaluation_shows_in_a_table(
    dwarfs: Path, tmp_path: Path, gray: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    perceptune.train(recipe(dwarfs), run)
    keys = ["eval.others.again.task.name=jsonl", f"eval.others.again.task.train={gray}"]
    assert cli(["eval", run, "--data", str(gray), "--gap", *keys]) == 0
    shown = capsys.readouterr().out
    assert "own - other" in shown
    assert "gray" in shown
    assert "again" in shown
    for key, words in {
        "eval.others.x.task.name=jsnl": "unknown task `jsnl`; did you mean `jsonl`",
        "eval.others.x/y.task.name=jsonl": "letters, digits",
        "eval.others.x.split=test": "`eval.others.x.task`",
    }.items():
        assert cli(["eval", run, key]) == 2
        assert words in capsys.readouterr().err


# Starting from another run


def of_sounds(encoder: Encoder, _: EncoderConfig) -> Encoder:
    """A picture's encoder stands for one of sounds."""
    encoder.modality = "audio"
    return encoder


@pytest.fixture
def ears(dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe with a second modality whose data has nothing else."""
    monkeypatch.setitem(ADAPTERS, ("audio", "image"), of_sounds)
    rows = [json.loads(line) for line in (dwarfs / "data/train.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio"] = str(dwarfs / "data" / row.pop("image"))
    (tmp_path / "audio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": {"name": "jsonl", "train": str(tmp_path / "audio.jsonl")},
        "encoders": {"image": str(dwarfs / "encoder"), "audio": str(dwarfs / "encoder")},
    }


@pytest.fixture(scope="module")
def first(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    perceptune.train(recipe(dwarfs), run)
    return run


def test_a_run_starts_from_another_without_training_anew(dwarfs: Path, tmp_path: Path, first: Path) -> None:
    perceptune.train(recipe(dwarfs, init_from=str(first), train=train_section(steps=0)), tmp_path / "same")
    assert (tmp_path / "same" / METHOD).read_bytes() == (first / METHOD).read_bytes()
    assert perceptune.evaluate(tmp_path / "same")["accuracy"] == perceptune.evaluate(first)["accuracy"]
    [start] = [row for row in read_log(tmp_path / "same") if row["event"] == "start"]
    assert start["init_from"]["run"] == str(first)
    assert len(start["init_from"]["sha256"]) == 64
    perceptune.train(recipe(dwarfs, init_from=str(first)), tmp_path / "on")
    perceptune.train(recipe(dwarfs), tmp_path / "anew")
    losses = [
        next(row["loss"] for row in read_log(tmp_path / name) if row["event"] == "step") for name in ("on", "anew")
    ]
    assert losses[0] < losses[1]


def test_one_encoder_after_the_other(dwarfs: Path, tmp_path: Path, first: Path, ears: dict[str, Any]) -> None:
    """A second modality learns with its own connector while the first one's stay bit for bit."""
    frozen = ["connectors.image", "prompt"]
    later = recipe(dwarfs, init_from=str(first), train=train_section(freeze=frozen), **ears)
    perceptune.train(later, tmp_path / "second")
    before, after = tensors(first), tensors(tmp_path / "second")
    fresh = {name: tensor for name, tensor in after.items() if name not in before}
    assert {name.split(".")[1] for name in fresh} == {"audio"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    model = perceptune.load(tmp_path / "second")
    own = perceptune.build(later).method.state_dict()
    moved = [name for name in fresh if not torch.equal(own[name], fresh[name])]
    assert set(moved) == set(fresh), "the new connector and its statistics"
    meta = json.loads((tmp_path / "second/meta.json").read_text())
    assert meta["trained"] == sum(fresh[n].numel() for n in fresh if n.split(".")[-1] not in ("mean", "std"))
    picture = perceptune.Sample("x", {"image": dwarfs / "data/train0.png"}, "color?")
    assert model.answer([picture]) == perceptune.load(first).answer([picture]), "it still sees as before"


def test_frozen_parts_of_a_new_method_stay_as_they_were_and_resume(dwarfs: Path, tmp_path: Path) -> None:
    given = recipe(dwarfs, train=train_section(freeze=["prompt", "connectors.image.maps.0"]))
    start = perceptune.build(given).method.state_dict()
    perceptune.train(given, tmp_path / "run")
    after = tensors(tmp_path / "run")
    same = {name for name in start if torch.equal(start[name], after[name])}
    assert same == {name for name in start if name.startswith(("prompt.", "connectors.image.maps.0."))}
    perceptune.train(run=tmp_path / "run", resume=True)
    assert all(torch.equal(tensors(tmp_path / "run")[name], after[name]) for name in after)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["promt"], "no part `promt`; did you mean `prompt`"),
        (["connectors.imag"], "did you mean `connectors.image`"),
        (["prompt", "connectors"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(parts: list[str], words: str, dwarfs: Path) -> None:
    with pytest.raises(UserError, match=words):
        perceptune.build(recipe(dwarfs, train=train_section(freeze=parts)))


def test_pictures_become_another_modality(dwarfs: Path, tmp_path: Path, first: Path, ears: dict[str, Any]) -> None:
    """Zero-shot: what was learned on one modality answers for another one, through the same connector."""
    ears["encoders"].pop("image")
    init = {"run": str(first), "rename": {"image": "audio"}}
    given = recipe(dwarfs, init_from=init, train=train_section(steps=0), **ears)
    perceptune.train(given, tmp_path / "b")
    renamed = {name.replace("image", "audio"): tensor for name, tensor in tensors(first).items()}
    zero = tensors(tmp_path / "b")
    assert zero.keys() == renamed.keys()
    assert all(torch.equal(zero[name], renamed[name]) for name in zero)
    assert not perceptune.evaluate(tmp_path / "b")["trained_on_this_split"], "nothing was"


def test_what_does_not_fit_is_named(dwarfs: Path, tmp_path: Path, first: Path) -> None:
    def refusal(**changes: Any) -> str:
        given = recipe(dwarfs) | {"init_from": str(first), **changes}
        with pytest.raises(UserError) as caught:
            perceptune.train(given, tmp_path / f"refused{hash(str(changes))}")
        return str(caught.value)

    def with_method(**keys: Any) -> str:
        init = {"run": str(first), "may_differ": ["method"]}
        return refusal(method={"name": "epalm", "n_levels": 2, **keys}, init_from=init)

    assert "method.n_levels = 2, this recipe 1" in refusal(method={"name": "epalm", "n_levels": 1})
    assert "`prompt.embedding` has shape (10, 32)" in with_method(prompt_tokens=3)
    assert "has no tensor `adapters." in with_method(adapters=True)
    assert "has a tensor `prompt." in with_method(prompt="none")
    assert "trained on another lm" in refusal(lm=str(dwarfs / "opt"))
    other = refusal(encoders={"image": str(dwarfs / "vit")})
    assert "trained on another encoders.image" in other
    assert "`init_from.may_differ: [encoders]` permits this" in other
    assert "not a run folder" in refusal(init_from=str(tmp_path))
    rename = {"run": str(first), "rename": {"imag": "image"}}
    assert "no modality `imag`; did you mean `image`" in refusal(init_from=rename)


def test_a_run_folder_cannot_have_code_imported_by_naming_it(first: Path, tmp_path: Path) -> None:
    """Not even while its recipe is read: a task is asked for its keys, which would import it."""
    (tmp_path / "evil_leaf").mkdir()
    (tmp_path / "evil_leaf/__init__.py").write_text("")
    (tmp_path / "evil_leaf/task.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    text = (first / RECIPE).read_text()
    sys.path.insert(0, str(tmp_path))
    try:
        for name, changed in {
            "own": text.replace("name: jsonl", "name: evil_leaf.task"),
            "other": text.replace("  others: {}", "  others: {a: {task: {name: evil_leaf.task}}}"),
            "short": text.replace("  others: {}", "  others: {a: {task: evil_leaf.task}}"),
        }.items():
            assert changed != text, name
            run = tmp_path / name
            run.mkdir()
            for file in ("meta.json", METHOD):
                (run / file).write_bytes((first / file).read_bytes())
            (run / RECIPE).write_text(changed)
            with pytest.raises(UserError, match=r"`evil_leaf\.task` is third-party code"):
                perceptune.load(run)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "imported").exists()
