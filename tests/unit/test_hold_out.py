"""`train.hold_out` with media: whole groups go to `validation` and `test`, and nothing of them is trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perceptune.config.hold_out import HoldOutConfig
from perceptune.config.recipe import Recipe, load_recipe
from perceptune.data.build_task import make_task
from perceptune.data.holdout_split import HoldoutSplit, selecting_splits
from perceptune.data.metrics.base import Scored
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.tools.compare.plan import make_plan
from perceptune.types import Member, Sample


class Rows(Task):
    """A task with these training rows."""

    metric = "accuracy"

    def __init__(self, rows: Sequence[Sample], *splits: str) -> None:
        self.rows, self.splits = rows, ("train", *splits)

    def samples(self, split: str) -> Sequence[Sample]:
        return self.rows

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Scored:
        raise NotImplementedError


def drawn_rows(seed: int, kind: str) -> list[Sample]:
    """Some hundred rows of sixty media: several rows of one medium, some with two media, some with targets more."""
    chance = random.Random(seed)
    rows = []
    for index in range(240):
        number = chance.randrange(60)
        name = f"scene{number // 3:02d}_take{number % 3}.png"
        image: Any = {
            "path": Path("data") / name,
            "bytes": name.encode(),
            "member": Member("a.tar", number, 9, name, ""),
        }[kind]
        media = {"image": image} | ({"audio": Path(f"s/scene{number // 3:02d}.wav")} if chance.random() < 0.2 else {})
        targets = tuple("abc"[: 1 + index % 3])
        rows.append(Sample(f"r{index}", media, "what?", targets, {"scene": number // 3}))
    return rows


def held(rows: Sequence[Sample], *splits: str, **given: Any) -> HoldoutSplit:
    return HoldoutSplit(Rows(rows, *splits), HoldOutConfig(**given))


def parts(task: Task) -> dict[str, list[Sample]]:
    return {split: list(task.samples(split)) for split in task.splits}


@pytest.mark.parametrize("kind", ["path", "bytes", "member"])
@pytest.mark.parametrize("group_by", [None, "scene", r"scene(\d+)", r"^scene\d+"])
@pytest.mark.parametrize("seed", range(3))
def test_no_medium_and_no_group_is_in_two_parts(seed: int, group_by: str | None, kind: str) -> None:
    if kind == "bytes" and group_by not in (None, "scene"):
        return
    rows = drawn_rows(seed, kind)
    task = held(rows, media=0.2, group_by=group_by, seed=seed)
    found = parts(task)
    assert task.splits == ("train", "validation", "test")
    assert sorted(sample.id for part in found.values() for sample in part) == sorted(sample.id for sample in rows)
    media = [{medium for sample in part for medium in sample.media.values()} for part in found.values()]
    scenes = [{sample.meta["scene"] for sample in part} for part in found.values()]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert media[one].isdisjoint(media[other])
        assert group_by is None or scenes[one].isdisjoint(scenes[other])
    assert all(found.values())


def test_media_are_counted_and_not_rows() -> None:
    rows = [Sample(f"{n}-{k}", {"image": Path(f"{n}.png")}, "?", ("a",)) for n in range(40) for k in range(1 + n % 7)]
    found = parts(held(rows, media=10, selecting=0.3))
    assert [len({sample.media["image"] for sample in part}) for part in found.values()] == [30, 3, 7]
    found = parts(held(rows, media=0.1))
    assert [len({sample.media["image"] for sample in part}) for part in found.values()] == [36, 2, 2]


@pytest.mark.parametrize(("selecting", "splits"), [(1, ("train", "validation")), (0, ("train", "test"))])
def test_a_part_alone(selecting: float, splits: tuple[str, ...]) -> None:
    rows = drawn_rows(0, "path")
    task = held(rows, selecting=selecting)
    assert task.splits == splits
    assert selecting_splits(task.splits) == ["validation"] * selecting
    both = parts(held(rows))
    assert {s.id for s in task.samples(splits[1])} == {s.id for name in ("validation", "test") for s in both[name]}
    assert not task.read_from(splits[1])


def test_the_rest_of_the_task_keeps_its_place() -> None:
    rows = drawn_rows(0, "path")
    assert held(rows, "test", selecting=1).splits == ("train", "validation", "test")
    assert held(rows, "validation", selecting=0).splits == ("train", "validation", "test")
    assert held(rows, "extra").splits == ("train", "validation", "extra", "test")


def test_the_parts_depend_on_neither_order_nor_folder_nor_training_seed(tmp_path: Path) -> None:
    rows = drawn_rows(1, "path")
    shuffled = random.Random(0).sample(rows, len(rows))
    moved = [Sample(s.id, {k: Path("/else") / str(m) for k, m in s.media.items()}, s.prompt, s.targets) for s in rows]
    first, *others = (
        {split: {sample.id for sample in part} for split, part in parts(held(one)).items()}
        for one in (rows, shuffled, moved)
    )
    assert all(other == first for other in others)
    assert first != {split: {s.id for s in part} for split, part in parts(held(rows, seed=1)).items()}


def test_added_media_leave_most_others_where_they_are() -> None:
    rows = [Sample(f"{n}", {"image": Path(f"{n}.png")}, "?", ("a",)) for n in range(220)]
    before, after = ({s.id for s in held(some, media=0.2).samples("train")} for some in (rows[:200], rows))
    assert len(before - after) < 10


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = [
        {
            "image": f"{n:02d}.png",
            "prompt": prompt,
            "targets": ["a"],
            "speaker": f"s{n % 5}",
            **({"room": 1} if n else {}),
        }
        for n in range(20)
        for prompt in ("what?", "who?")
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe_of(table: Path, *overrides: Any, **hold_out: Any) -> Recipe:
    task = {"name": "jsonl", "train": str(table), "check_files": False}
    return load_recipe({"task": task, "train": {"hold_out": hold_out or None}}, overrides)


def test_rows_read_lazily_are_grouped_by_a_column(table: Path) -> None:
    found = parts(make_task(recipe_of(table, media=8, group_by="speaker")))
    speakers = [{sample.meta["speaker"] for sample in part} for part in found.values()]
    assert [len(one) for one in speakers] == [3, 1, 1]
    assert [len(part) for part in found.values()] == [24, 8, 8]
    again = parts(make_task(load_recipe(recipe_of(table, media=8, group_by="speaker"), ["seed=7"])))
    assert {k: [s.id for s in v] for k, v in again.items()} == {k: [s.id for s in v] for k, v in found.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group_by": "room"}, r"sample `.*` has no column `room`"),
        ({"group_by": "spaeker"}, r"is no column \(the rows have .*`speaker`.*not found in `00.png` of sample"),
        ({"group_by": "("}, "neither a column of the rows nor a regular expression"),
        ({"group_by": r"^1\d"}, "not found in `00.png`"),
        ({"group_by": "png"}, r"`train.hold_out.group_by: png` puts 20 of 20 media into one group \(`png`\)"),
        ({"group_by": "^(?=.[0-6])|."}, "puts 14 of 20 media into one group"),
        ({"media": 20}, "leaves nothing to train on: there are 20 media in 20 groups"),
        ({"media": 0.99}, "leaves nothing to train on"),
        ({"media": 1}, "`validation` or `test` would be empty"),
        ({"media": 0.01}, "`validation` or `test` would be empty"),
    ],
)
def test_what_cannot_be_held_out_is_one_clear_error(given: dict[str, Any], message: str, table: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_task(recipe_of(table, **given)).samples("train")


def test_one_medium_and_names_that_bytes_lack() -> None:
    with pytest.raises(UserError, match="one medium only"):
        held([Sample("a", {"image": Path("a.png")}, "?")] * 3).samples("train")
    with pytest.raises(UserError, match="which the media of sample `r0` do not have"):
        held(drawn_rows(0, "bytes"), group_by=r"scene\d+").samples("train")
    with pytest.raises(UserError, match="is empty"):
        held([]).samples("train")
    linked = [Sample(f"{n}", {"image": Path(f"{n}.png"), "audio": Path("one.wav")}, "?") for n in range(9)]
    with pytest.raises(UserError, match="9 of 9 media are linked by samples that share one"):
        held(linked).samples("train")


@pytest.mark.parametrize(("name", "selecting"), [("validation", 0.5), ("validation", 1), ("test", 0.5), ("test", 0)])
def test_a_split_of_that_name_is_kept(name: str, selecting: float) -> None:
    with pytest.raises(UserError, match=f"makes split `{name}`, which the task has already: set"):
        held([], name, selecting=selecting)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.hold_out.media=20"], {"media": 20}),
        (["train.hold_out.media=0.2", "train.hold_out.group_by=123"], {"media": 0.2, "group_by": "123"}),
        (["train.hold_out={media: 3, group_by: '^(\\d+)-'}"], {"media": 3, "group_by": r"^(\d+)-"}),
        ([("train.hold_out", {"selecting": 1})], {"selecting": 1.0}),
        (["train.hold_out={}"], {}),
        (["train.hold_out=0.1"], 0.1),
        (["train.hold_out=7"], 7),
        (["train.hold_out=null"], None),
    ],
)
def test_the_key_on_the_command_line(overrides: list[Any], expected: Any) -> None:
    found = load_recipe({}, overrides).train.hold_out
    assert found == (HoldOutConfig(**expected) if isinstance(expected, dict) else expected)
    assert type(found) in (int, float, HoldOutConfig, type(None))
    assert load_recipe(load_recipe({}, overrides)).train.hold_out == found, "as a run folder stores it"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.hold_out.media=0"], r"`train\.hold_out\.media`: must be a whole number"),
        (["train.hold_out.media=1.0"], r"`train\.hold_out\.media`: must be a whole number"),
        (["train.hold_out.selecting=2"], r"`train\.hold_out\.selecting`"),
        (["train.hold_out.medai=3"], r"unknown key `train\.hold_out\.medai`.*`media`"),
        (["train.hold_out=many"], r"`train\.hold_out`: must be a number or a fraction of samples, or a mapping"),
        (["train.hold_out=-1"], r"`train\.hold_out`: must be a whole number"),
        (["train.hold_out=0.1", "train.hold_out.media=3"], "`hold_out` holds the value 0.1, not keys"),
        (["compare.hold_out.media=0"], r"`compare\.hold_out\.media`"),
    ],
)
def test_a_wrong_key_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe({}, overrides)


def test_a_recipe_keeps_the_splits_that_it_makes(table: Path) -> None:
    base = {
        "task": "easy-vqa",
        "train": {"hold_out": {"media": 4}},
        "eval": {"split": "test", "during_split": "validation"},
    }
    kept = load_recipe(base, ["task=jsonl", f"task.train={table}"]).eval
    assert (kept.split, kept.during_split) == ("test", "validation")


def test_a_comparison_holds_out_media(table: Path) -> None:
    grid = {"train.lr": [1e-3, 1e-2]}
    asked = {**recipe_of(table).model_dump(mode="json"), "compare": {"hold_out": {"media": 8, "group_by": "speaker"}}}
    plan = make_plan([asked], ["train.steps=1"], grid=grid)
    assert (plan.select_on, plan.test_on) == ("validation", "test")
    assert plan.entries[0].recipe.train.hold_out == HoldOutConfig(media=8, group_by="speaker")
    with pytest.raises(UserError, match=r"`train\.hold_out\.selecting` is 0"):
        make_plan([recipe_of(table, media=8, selecting=0)], grid=grid)
    with pytest.raises(UserError, match="same budget"):
        make_plan([recipe_of(table)], grid={"train.hold_out.media": [4, 8]})


@pytest.mark.parametrize("amount", [0.2, 12, HoldOutConfig(media=0.2)])
@pytest.mark.parametrize("seed", range(3))
def test_no_medium_of_several_is_in_two_parts(seed: int, amount: Any) -> None:
    chance, rows = random.Random(seed), []
    for index in range(120):
        scene = chance.randrange(40)
        chosen = [Path(f"scene{scene}_take{take}.png") for take in chance.sample(range(4), chance.randint(1, 3))]
        sounds = [Path(f"sound{scene}.wav"), Path(f"{index}.wav")] if chance.random() < 0.1 else []
        media: Any = {"image": tuple(chosen) if len(chosen) > 1 else chosen[0]} | (
            {"audio": tuple(sounds)} if sounds else {}
        )
        rows.append(Sample(f"r{index}", media, "what?", ("a",)))
    found = parts(HoldoutSplit(Rows(rows), amount))
    assert all(found.values())
    assert sum(map(len, found.values())) == len(rows)
    places = [{medium for sample in part for _, medium in sample.iter_media()} for part in found.values()]
    assert len(set.union(*places)) == sum(map(len, places))


def test_a_column_of_files_that_several_names_match() -> None:
    pairs = [(Path(f"s{n}_a.png"), Path(f"s{n}_b.png")) for n in range(12)]
    rows: list[Sample] = [
        Sample(f"{n}{i}", {"image": pair[i]}, "?", ("a",)) for n, pair in enumerate(pairs) for i in (0, 1)
    ]
    rows += [Sample(f"{n}", {"image": pair}, "?", ("a",)) for n, pair in enumerate(pairs[:3])]
    found = parts(held(rows, media=4, group_by=r"(s\d+)_"))
    scenes = [{str(medium)[:3] for sample in part for _, medium in sample.iter_media()} for part in found.values()]
    assert len(set.union(*scenes)) == sum(map(len, scenes))
