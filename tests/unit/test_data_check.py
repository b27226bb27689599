"""Checking data: what was planted is counted, what check calls clean is what training takes, nothing makes it fail."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import blips
import clips
import perceptune
import planted
import sounds
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.recognition.task_keys import recognize_task
from perceptune.data.records import MAX_LINE
from perceptune.errors import UserError
from perceptune.tools.datasets.problems import PROBLEM_KINDS
from perceptune.tools.datasets.validate import Checked, CheckOptions, validate_dataset

pytestmark = pytest.mark.usefixtures("own_cache")
often = settings(max_examples=60, deadline=None, database=None, derandomize=True)
# What a training finds out later than before its first step: when it decodes, and not at all.
LATER = {"broken-medium"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.desk(tmp_path_factory.mktemp("desk"))


def counts(checked: Checked) -> dict[str, int]:
    return {kind: found["count"] for kind, found in checked.report["problems"].items()}


def write(desk: Path, *lines: bytes | dict[str, Any]) -> str:
    file = desk / "rows.jsonl"
    file.write_bytes(b"".join((line if isinstance(line, bytes) else planted.text(line)) + b"\n" for line in lines))
    return str(file)


def refused(file: str) -> bool:
    """Whether a training would stop before its first step."""
    try:
        data = recognize_task(file)
        if data.doubt is not None:
            return True
        task_of(NamedPart(**data.task)).samples("train")
    except UserError:
        return True
    return False


@often
@given(kinds=st.lists(st.sampled_from([*planted.KINDS, "good"]), min_size=1, max_size=12))
def test_the_counts_are_those_of_the_planted_mistakes(desk: Path, kinds: list[str]) -> None:
    lines = [planted.text(planted.good(0))]
    lines += [
        planted.text(planted.good(n)) if kind == "good" else planted.planted(kind, n) for n, kind in enumerate(kinds, 1)
    ]
    file = write(desk, *lines)
    checked = validate_dataset(file)
    wanted = Counter(kind for kind in kinds if kind != "good")
    assert counts(checked) == wanted
    assert checked.clean == (not wanted)
    assert refused(file) == bool(wanted)
    for kind, found in checked.report["problems"].items():
        first = kinds.index(kind) + 2
        assert f"rows.jsonl, line {first}:" in found["first"][0], kind


@often
@given(
    damage=st.lists(st.tuples(st.integers(0, 500), st.binary(max_size=3)), max_size=6),
    cut=st.integers(0, 500),
    zipped=st.booleans(),
)
def test_any_damage_is_survived_and_what_is_clean_is_accepted(
    desk: Path, damage: list[tuple[int, bytes]], cut: int, zipped: bool
) -> None:
    data = bytearray(b"".join(planted.text(planted.good(n)) + b"\r\n" for n in range(4)))
    data = bytearray(gzip.compress(bytes(data))) if zipped else data
    for place, new in damage:
        data[place % len(data) : place % len(data) + len(new)] = new
    file = desk / "damaged.jsonl"
    file.write_bytes(bytes(data[: max(1, len(data) - cut * (cut % 2))]))
    assert bool(counts(validate_dataset(str(file))).keys() - LATER) == refused(str(file))


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4) | st.sampled_from(["a.png", "row-1"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from(["id", "image", "audio", "prompt", "targets", "answer_type", "imgae", "page"])


@often
@given(changes=st.lists(st.dictionaries(keys, values | st.just(...), max_size=2), min_size=1, max_size=4))
def test_check_and_training_agree_on_rows_of_any_shape(desk: Path, changes: list[dict[str, Any]]) -> None:
    rows = [json.dumps(planted.good(n, **change)).encode() for n, change in enumerate(changes)]
    file = write(desk, *rows)
    assert bool(counts(validate_dataset(file)).keys() - LATER) == refused(file)


def test_every_kind_has_a_meaning() -> None:
    assert {*planted.KINDS, "long-line", "broken-medium", "no-samples", "text", "no-encoder"} <= set(PROBLEM_KINDS)


def test_a_giant_line_is_passed_over_in_little_memory(desk: Path) -> None:
    file = desk / "giant.jsonl"
    with file.open("wb") as out:
        out.write(planted.text(planted.good(0)) + b'\n{"a": "')
        out.writelines(bytes(2**20) for _ in range(160))
        out.write(b'"}\n' + planted.text(planted.good(1)) + b"\n")
    tracemalloc.start()
    checked = validate_dataset(str(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts(checked) == {"long-line": 1}
    assert checked.report["splits"]["train"]["rows"] == 2
    assert peak < 4 * MAX_LINE
    assert refused(str(file))
    file.unlink()


def test_media_are_opened_once_and_decoded_on_request(desk: Path) -> None:
    whole = (desk / "a.png").read_bytes()
    (desk / "cut.png").write_bytes(whole[:-30])  # its header is whole
    rows = [planted.good(n, image=("cut.png", planted.BROKEN, "a.png")[n % 3]) for n in range(9)]
    file = write(desk, *rows)
    assert counts(validate_dataset(file)) == {"broken-medium": 1}
    found = validate_dataset(file, options=CheckOptions(decode=True))
    assert counts(found) == {"broken-medium": 2}
    assert found.report["splits"]["train"]["media"]["image"]["distinct"] == 3


@pytest.mark.parametrize("decode", [False, True])
def test_sounds_and_clips(desk: Path, decode: bool) -> None:
    (desk / "low.wav").write_bytes(sounds.encoded(sounds.tone(seconds=0.5)))
    (desk / "not.wav").write_bytes(b"RIFF, and then nothing")
    (desk / "short.mp4").write_bytes(clips.clip(range(0, 30, 3)))
    (desk / "not.mp4").write_bytes(b"no clip")
    names = [{"audio": "low.wav"}, {"audio": "not.wav"}, {"video": "short.mp4"}, {"video": "not.mp4"}]
    checked = validate_dataset(
        write(desk, *(planted.good(n, image=..., **name) for n, name in enumerate(names))),
        options=CheckOptions(decode=decode),
    )
    assert counts(checked) == {"broken-medium": 2}
    media = checked.report["splits"]["train"]["media"]
    assert media["audio"]["seconds"]["greatest"] == pytest.approx(0.5)
    assert media["video"]["frames"]["greatest"] == 10
    assert media["video"]["seconds"]["greatest"] == pytest.approx(1.0, abs=0.15)
    assert media["video"]["width"]["least"] == clips.WIDTH


def test_what_is_uncommon_and_no_mistake_is_noted(desk: Path) -> None:
    shutil.copy(desk / "a.png", desk / "copy.png")
    rows = [planted.good(0), planted.good(0, id="again"), planted.good(2, image="copy.png", id=...)]
    data = "\ufeff".encode() + b"\r\n".join(map(planted.text, rows))
    for name, content in (("plain.jsonl", data), ("zipped.jsonl", gzip.compress(data))):
        (desk / name).write_bytes(content)
        checked = validate_dataset(str(desk / name), options=CheckOptions(contents=True))
        assert checked.clean
        found = checked.report["splits"]["train"]
        zipped = ["gzipped"] if "zipped" in name else []
        assert found["form"] == [*zipped, "a byte order mark", "lines end in CRLF"]
        assert found["repeated_rows"] == {"count": 1, "first": [(2, 1)]}
        assert found["copied_media"]["count"] == 1
        assert found["copied_media"]["first"] == [(str(desk / "copy.png"), str(desk / "a.png"))]


def test_texts_are_counted(desk: Path) -> None:
    rows = [planted.good(n, targets=["a red cup"] if n else ["No."], answer_type="t" if n else None) for n in range(4)]
    found = validate_dataset(write(desk, *rows)).report["splits"]["train"]
    assert found["lengths"]["target words"] == {"least": 1, "mean": 2.5, "median": 3, "p99": 3, "greatest": 3}
    assert found["answers"]["most_frequent"][0] == {"answer": "a red cup", "count": 3, "share": 0.75}
    assert found["answers"]["distinct"] == 2
    assert found["answer_types"] == {"t": 3, "": 1}


def test_answers_are_a_list_of_strings(desk: Path) -> None:
    rows = [planted.good(n, answers=answers) for n, answers in enumerate((["a", "b"], "a", [1], None))]
    assert counts(validate_dataset(write(desk, *rows))) == {"wrong-type": 3}


def test_only_questions_to_be_answered_may_lack_answers(desk: Path) -> None:
    file = write(desk, planted.good(0, targets=...))
    assert counts(validate_dataset(file)) == {"missing-key": 1}
    checked = validate_dataset(file, split="test")
    assert checked.clean
    assert checked.report["splits"]["test"]["rows_without_targets"] == 1


def test_an_empty_file_and_a_metric_that_never_comes(desk: Path) -> None:
    assert counts(validate_dataset(write(desk, b" "))) == {"no-samples": 1}
    assert counts(validate_dataset(write(desk, planted.good(0)), ["task.metric=accuracy_x"])) == {"refused": 1}


def test_a_recipe_knows_its_encoders_and_how_long_a_text_may_be(desk: Path, dwarfs: Path, tmp_path: Path) -> None:
    for name, rows in {
        "train": [planted.good(0), planted.good(1, targets=["x" * 40]), planted.good(2, image=None, audio="a.wav")],
        "test": [planted.good(3, targets=["x" * 40])],
    }.items():
        (desk / f"{name}.jsonl").write_bytes(b"\n".join(map(planted.text, rows)))
    (desk / "a.wav").write_bytes(sounds.encoded(sounds.tone()))
    recipe = desk / "recipe.yaml"
    recipe.write_text(
        f"lm: {dwarfs / 'lm'}\ntask: {{name: jsonl, train: train.jsonl, test: test.jsonl}}\n"
        "text: {max_tokens: 50, template: '{prompt}'}\n"
    )
    checked = validate_dataset(str(recipe))
    assert counts(checked) == {"text": 1, "no-encoder": 1}
    assert "line 2: " in checked.report["problems"]["text"]["first"][0]
    assert checked.report["splits"]["train"]["lengths"]["target tokens"]["greatest"] == 42
    assert checked.report["shared_media"] == {"test": 1}
    assert set(validate_dataset(str(recipe), split="test").report["splits"]) == {"test"}
    lengths = validate_dataset(str(recipe), options=CheckOptions(tokens=False)).report["splits"]["train"]["lengths"]
    assert set(lengths) == {"prompt words", "target words"}


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_instructblip_counts_its_image_tokens_and_answers_in_its_own_way(
    desk: Path, tmp_path: Path, kind: str
) -> None:
    blip = blips.save_blip(tmp_path / kind, kind)
    recipe = desk / "recipe.yaml"
    recipe.write_text(json.dumps(blips.recipe(blip, write(desk, planted.good(0)))))
    checked = validate_dataset(str(recipe), split="train")
    assert checked.clean
    text = perceptune.build(blips.recipe(blip)).text
    found, (sample,) = checked.report["splits"]["train"]["lengths"], checked.samples["train"]
    assert found["prompt tokens"]["greatest"] == len(text.prompt_ids(sample)) > blips.N_QUERIES
    assert found["target tokens"]["greatest"] == len(text.target_ids(sample.targets[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("desk/rowz.jsonl",), r"no file and no recipe .*did you mean `rows\.jsonl`\?"),
        (("desk",), "can be read in several ways"),
        (("none.yaml",), "no recipe `none.yaml`"),
        (("desk/rows.jsonl", ["task.tran=x"]), "unknown key `tran`"),
        (("dwarf/epalm", [], "trian"), r"unknown split `trian`; did you mean `train`\?"),
    ],
)
def test_a_wrong_call_is_no_finding(desk: Path, arguments: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(desk, planted.good(0))
    monkeypatch.chdir(desk.parent)
    source, *rest = arguments
    with pytest.raises(UserError, match=message):
        validate_dataset(source.replace("desk", desk.name), *rest[:1], split=rest[1] if len(rest) > 1 else None)


def test_shards_are_checked_to_their_end(desk: Path) -> None:
    import tars

    picture = (desk / "a.png").read_bytes()
    members = [("1.png", picture), ("1.json", tars.row()), ("2.png", b"x"), ("2.json", tars.row())]
    (desk / "a.tar").write_bytes(tars.archive(members))
    recipe = desk / "shards.yaml"
    recipe.write_text("task: {name: webdataset, train: a.tar}\n")
    options = CheckOptions(tokens=False)
    assert counts(validate_dataset(str(recipe), options=options)) == {"broken-medium": 1}
    (desk / "a.tar").write_bytes(tars.archive([("3.png", picture), ("3.json", b"{}"), *members, ("4.png", picture)]))
    found = validate_dataset(str(recipe), options=options)
    assert counts(found) == {"missing-key": 1, "no-targets": 1, "broken-medium": 1}
    assert (found.report["splits"]["train"]["rows"], found.report["splits"]["train"]["bad_rows"]) == (2, 2)


def late(seconds: float) -> bytes:
    """A tone after so many seconds of silence."""
    return sounds.encoded(np.concatenate([np.zeros((round(seconds * 16_000), 1)), sounds.tone()]))


def test_sounds_are_heard_as_far_as_the_encoder_hears(desk: Path, ears: Path) -> None:
    for second in (0, 2, 31):
        (desk / f"{second}.wav").write_bytes(late(second))
    file = write(desk, *(planted.good(n, image=..., audio=f"{n}.wav") for n in (0, 2, 31)))
    options = CheckOptions(decode=True, tokens=False)
    assert validate_dataset(file).clean
    found = validate_dataset(file, options=options)
    assert counts(found) == {"broken-medium": 1}, "the default encoder hears 30 seconds"
    assert "31.wav: silent (all of the 30.00 seconds" in found.report["problems"]["broken-medium"]["first"][0]
    recipe = desk / "recipe.yaml"
    short, long = {"id": "default", "seconds": 2.5}, {"id": "dinov2-small", "seconds": 33}
    for encoder, silent in (({"id": str(ears / "whisper")}, 2), (short, 1), (long, 0)):
        recipe.write_text(json.dumps({"encoders": {"audio": encoder}, "task": {"name": "jsonl", "train": file}}))
        assert counts(validate_dataset(str(recipe), options=options)) == ({"broken-medium": silent} if silent else {})


def test_an_image_too_narrow_for_the_encoder_is_found(desk: Path, dwarfs: Path) -> None:
    Image.new("RGB", (300_000, 1)).save(desk / "strip.png")
    file = write(desk, planted.good(0, image="strip.png"))
    recipe = desk / "recipe.yaml"
    encoder = {"id": str(dwarfs / "encoder"), "resize": "squash"}
    recipe.write_text(json.dumps({"encoders": {"image": encoder}, "task": {"name": "jsonl", "train": file}}))
    assert validate_dataset(str(recipe), options=CheckOptions(decode=True, tokens=False)).clean
    found = validate_dataset(file, options=CheckOptions(decode=True))
    assert "too narrow to enlarge" in found.report["problems"]["broken-medium"]["first"][0]
