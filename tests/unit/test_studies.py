"""The studies: their recipes, published figures, data files, limits and page."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import limits
import planning
import second_lm
import write
from attention import evenness, figures, moved
from drawing import drawing_of
from perceptune.config.recipe import load_recipe
from perceptune.errors import UserError
from perceptune.models.backbone import method_options
from perceptune.tools.compare.plan import _settings, _settings_of, _variants
from perceptune.utils.assets import ASSETS
from photo_questions import ask
from prepare import prepare
from studydata import save_study_data

STUDIES = Path(__file__).parents[2] / "studies"
PLAN = planning.load_plan()
PUBLISHED = yaml.safe_load((STUDIES / "published.yaml").read_text(encoding="utf-8"))["tables"]
COMPARISONS = [
    (part.name, command) for part in PLAN.parts for command in part.commands if " compare " in command[:20]
]  # fmt: skip


def test_every_published_table_has_a_part_or_a_reason() -> None:
    named = {name for part in [*PLAN.parts, *PLAN.open] for name in part.published}
    assert named == set(PUBLISHED)
    wanted = {f"epalm-table-{n}" for n in range(1, 17)} | {f"petal-table-{n}" for n in range(1, 6)}
    assert wanted <= named


def test_published_rows_fit_their_columns() -> None:
    for name, table in PUBLISHED.items():
        assert all(set(column) == {"name", "dataset", "metric"} for column in table["columns"]), name
        for row, values in table["rows"].items():
            assert len(values) == len(table["columns"]), (name, row)
            assert all(value is None or isinstance(value, int | float) for value in values), (name, row)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The studies beside made-up prepared data, as in a checkout."""
    root = tmp_path_factory.mktemp("studies")
    shutil.copytree(STUDIES, root / "studies")
    prepare(save_study_data(root / "data"), root / "runs" / "study" / "data")
    return root


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_with_data_that_there_is(path: Path, tree: Path) -> None:
    recipe = load_recipe(tree / path.relative_to(STUDIES.parent))
    assert recipe.task is not None
    parts = recipe.task.options().get("parts", {}).values()
    options = [recipe.task.options(), *parts, *(other.task.options() for other in recipe.eval.others.values())]
    named = [one[split] for one in options for split in ("train", "validation", "test") if split in one]
    assert named
    assert all(Path(file).is_file() for file in named), named
    method_options(recipe)
    assert any(path.relative_to(STUDIES.parent).as_posix() in part.recipes for part in PLAN.parts)


@pytest.mark.parametrize(("part", "command"), COMPARISONS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(COMPARISONS)])
def test_every_label_of_a_comparison_is_a_method(part: str, command: str, tree: Path) -> None:
    words = shlex.split(command)
    overrides = [word for word in words if "=" in word and not word.startswith("train.lr+")]
    recipe = load_recipe(tree / words[2], [word for word in overrides if "lr=" not in word])
    labels = (planning.option(words, "--methods") or ",".join(recipe.compare.methods)).split(",")
    assert set(labels) <= set(recipe.compare.methods), part
    common = _settings(recipe.compare.grid)
    made = _variants(recipe, labels, [], False)
    for label, one in made:
        method_options(one)
        assert len(_settings_of(label, one, common)) == len(common)
    assert made[0][0] == labels[0]


def test_the_recipe_for_captions_is_what_was_measured() -> None:
    ranks = _variants(load_recipe(STUDIES / "epalm" / "flagship.yaml"), ["rank-16", "rank-2"], [], False)
    offered, measured = load_recipe("captions"), dict(ranks)["rank-2"]
    # The measured run names its dtypes; the recipe leaves them to the machine.
    assert offered.encoders["image"].dtype == offered.train.precision == offered.eval.dtype == "auto"
    image = offered.encoders["image"].model_copy(update={"dtype": measured.encoders["image"].dtype})
    offered = offered.model_copy(update={"encoders": {"image": image}})
    for section in ("encoders", "text", "decode"):
        assert getattr(offered, section) == getattr(measured, section), section
    assert (
        offered.train.model_copy(
            update={"save_every": measured.train.save_every, "precision": measured.train.precision}
        )
        == measured.train
    )
    ours, theirs = method_options(offered).model_dump(), method_options(measured).model_dump()
    assert ours["peft"].pop("layers_to_transform") == "injected"
    assert theirs["peft"].pop("layers_to_transform") == list(range(18, 30))
    assert ours == theirs


def test_commands_name_their_recipes_and_keys() -> None:
    for part in PLAN.parts:
        words = [word for command in part.commands for word in shlex.split(command)]
        files = {word for word in words if word.startswith("studies/") and word.endswith(".yaml")}
        assert files == set(part.recipes), part.name
        for command in part.commands:
            given = shlex.split(command.replace("{best:", "{").replace("{", "").replace("}", ""))
            outs = [word for word in given if word in ("--out", "--run")]
            assert outs or any(word.startswith("runs/") for word in given), command


def test_splits_share_no_photo_source_or_footage(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = save_study_data(tmp_path / "data")
    files = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in prepare(data, out)}
    assert {name.rpartition("-")[0] for name in files} == {
        "flickr8k", "photo-questions", "daquar", "esc50", "esc50-captions", "fsdd", "fights", "audiocaps", "stamps",
    }  # fmt: skip
    assert Counter(map(len, files.values()))[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    prepare(data, out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before, "a training may be reading them"

    def media(name: str) -> set[str]:
        return {row.get("image") or row.get("audio") or row["video"] for row in files[name]}

    for name in ("flickr8k", "daquar", "esc50", "fsdd", "fights"):
        assert not media(f"{name}-train") & media(f"{name}-test"), name
    assert media("photo-questions-fit") <= media("flickr8k-train") | media("flickr8k-dev")
    assert media("photo-questions-test") <= media("flickr8k-test")
    source = {name: {Path(path).stem.split("-")[1] for path in media(f"esc50-{name}")} for name in ("train", "test")}
    assert source == {"train": {"1", "9"}, "test": {"2", "3"}}
    clips = {name: {Path(path).stem for path in media(f"fights-{name}")} for name in ("train", "test")}
    assert clips["test"] == {"fi4", "fi5", "fi9"}, "two clips of one source, and one that is its own"
    assert files["flickr8k-test"][0]["targets"] == ["A red dog runs.", "The red dog.", "red."]
    with pytest.raises(UserError, match="holds `flickr8k`"):
        prepare(tmp_path, out)


def asked(prompt: str, answer: str, target: str, image: str = "1.png", **more: Any) -> dict[str, Any]:
    return {"id": prompt, "media": {"image": image}, "prompt": prompt, "answer": answer, "raw": f" {answer}",
            "targets": [target], "scores": {"accuracy": float(answer == target)}, **more}  # fmt: skip


def test_questions_cannot_be_answered_from_their_wording() -> None:
    dogs = [[f"A dog {doing} .", "A dog on snow .", "The dog .", "It .", "It ."] for doing in ("runs", "runs", "jumps")]
    others = [["A man .", "A man .", "Men .", "A girl .", "A child ."], ["Nobody ."] * 5]
    clear = [["A woman jumps ."] * 5, ["A dog runs on snow ."] * 5, ["Dogs run ."] * 5, ["A dog jumps ."] * 5]
    asked = ask([*dogs, *others, *clear], "test")
    assert asked == ask([*dogs, *others, *clear], "test")
    answers: dict[str, Counter[str]] = {}
    for one in asked:
        answers.setdefault(one.question, Counter())[one.answer] += 1
    assert answers == {
        "Who or what is in the photo?": {"dog": 1, "man": 1, "woman": 1},
        "What is being done?": {"running": 2, "jumping": 2},
        "Is there a dog in the photo?": {"yes": 3, "no": 3},
        "Is there a woman in the photo?": {"yes": 1, "no": 1},
        "Is there snow in the photo?": {"yes": 1, "no": 1},
    }  # fmt: skip
    kinds = {one.kind: one.question for one in asked}
    assert kinds["who"] == "Who or what is in the photo?"
    assert {one.photo for one in asked if one.answer == "man"} == {3}


def test_limits_are_counted_by_kind(tmp_path: Path) -> None:
    captions = [
        asked("", "a man with a dog", "a woman by a sign"),
        asked("", "a dog in the snow", "a puppy on snow"),
        asked("", "a girl plays", "a boy plays"),
    ]
    questions = [
        asked("How many dogs?", "two", "three"),
        asked("How many cats?", "two", "two"),
        asked("Who or what is in the photo?", "dog", "dog"),
        asked("Is there a dog in the photo?", "no", "yes"),
        asked("Is there a cat in the photo?", "what? no", "no", raw=" what? no"),
    ]
    trained = Counter({"two": 9, "dog": 9, "yes": 9, "no": 9})
    found = limits.kinds(captions, questions, trained)
    rates = {row["label"]: (row["samples"], row["value"]) for row in limits.figures(found)}
    assert rates == {
        "counting": (2, 0.5), "rare": (1, 1.0), "reading": (1, 1.0), "made-up": (2, 0.5), "own-question": (5, 0.2),
        "common-sense": (1, 1.0), "bias-women": (1, 1.0), "bias-men": (1, 1.0),
    }  # fmt: skip
    image = tmp_path / "1.png"
    Image.new("RGB", (20, 20), "red").save(image)
    kind = found[0]._replace(rows=[{**row, "media": {"image": str(image)}} for row in found[0].rows])
    limits.panel(kind, tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as shown:
        assert shown.width > 200
    limits.panel(kind._replace(failed=[False, False]), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_attention_is_measured_between_nothing_and_all() -> None:
    even, one = np.ones((4, 4)), np.eye(16)[0].reshape(4, 4)
    assert (moved(even, even), moved(one, even)) == (0, pytest.approx(15 / 16))
    assert (evenness(even), evenness(one)) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert [row["value"] for row in figures([(0.0, 1.0, 0.5), (1.0, 1.0, 0.5)])] == [0.5, 1.0, 0.5]


def test_the_second_lm_is_under_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["second_lm.py", str(tmp_path / "gemma")])
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="perceptune assets gemma-3-270m --accept-terms"):
        second_lm.main()
    asset = tmp_path / "cache/assets" / ASSETS["gemma-3-270m"].folder
    asset.mkdir(parents=True)
    for name in ("asset.json", "config.json"):
        (asset / name).touch()
    for _ in range(2):
        assert second_lm.main() == 0
        assert (tmp_path / "gemma/config.json").samefile(asset / "config.json")


def test_the_page_is_what_the_results_say() -> None:
    made = write.pages(STUDIES)
    assert (STUDIES / "README.md").read_text(encoding="utf-8") == made[STUDIES / "README.md"], "python studies/write.py"
    pictures = {path for path in made if path.suffix == ".svg"}
    assert pictures == set((STUDIES / "pictures").glob("*.svg"))


def test_a_picture_shows_the_metric_of_record_where_two_rows_have_it() -> None:
    def row(label: str, **values: float) -> dict[str, Any]:
        return {"label": label, "metrics": list(values), "values": values}

    captions = row("beams", BLEU=0.5, CIDEr=0.25)
    drawn = drawing_of({"kind": "eval", "rows": [captions, {**captions, "label": "greedy"}]})
    assert drawn is not None
    assert "CIDEr" in drawn.text
    assert "BLEU" not in drawn.text
    assert drawing_of({"kind": "eval", "rows": [captions, row("questions", accuracy=0.1)]}) is None
