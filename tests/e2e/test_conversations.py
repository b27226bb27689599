"""Conversations with several images, from training to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import perceptune
import support
from perceptune.cli.main import run as cli
from perceptune.evaluation.batch_predict import predict
from perceptune.models.run_folder import has_histories, read_meta

CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }} {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
BROKEN = "broken.png"


@pytest.fixture(scope="module")
def talks(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LM with a chat template, and rows of one answer, of a pair of images, and of two turns."""
    folder = tmp_path_factory.mktemp("talks")
    shutil.copytree(dwarfs / "lm", folder / "lm")
    tokenizer = support.tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "lm")
    shutil.copytree(dwarfs / "data", folder / "data")
    colors = list(support.COLORS)
    rows = []
    for i in range(12):
        name = [f"train{(i + step) % 12}.png" for step in range(3)]
        said = [colors[(i + step) % 4] for step in range(3)]
        one, pair = ["color?", name[:1], said[0]], ["which colors?", name[:2], f"{said[0]} {said[1]}"]
        turns = [[one], [pair], [one, ["and this?", name[1:2], said[1]]], [pair, ["first?", [], said[0]]]][i % 4]
        rows.append({"id": f"talk-{i}", "turns": turns})
    write(folder, rows)
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "data/talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(dwarfs: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    file = str(folder / "data/talks.jsonl")
    return support.recipe(
        folder / "lm", dwarfs / "encoder", **{
            "encoders": {"image": {"id": str(dwarfs / "encoder"), "max_media": 4}}, "text": {"template": "chat"},
            "task": {"name": "leaves.talks", "train": file, "validation": file},
            "eval": {"every": 3, "at_end": True}, **changes,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(dwarfs: Path, talks: Path) -> Path:
    perceptune.train(recipe(dwarfs, talks), talks / "run", trust=True)
    return talks / "run"


def test_a_run_says_that_it_was_trained_on_histories(trained: Path, dwarfs: Path, talks: Path, tmp_path: Path) -> None:
    assert has_histories(read_meta(trained))
    assert json.loads((trained / "meta.json").read_text())["conversations"] is True
    rows = [json.loads(line) for line in (talks / "data/talks.jsonl").read_text().splitlines()]
    shutil.copytree(talks, tmp_path / "singles")
    write(tmp_path / "singles", [row for row in rows if len(row["turns"]) == 1])
    given = recipe(dwarfs, tmp_path / "singles", train=support.train_section(steps=1), eval={"at_end": False})
    perceptune.train(given, tmp_path / "single", trust=True)
    assert "conversations" not in json.loads((tmp_path / "single/meta.json").read_text())
    assert not has_histories(read_meta(tmp_path / "single"))


def test_every_answer_is_evaluated(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows[:6]] == ["talk-0", "talk-1", "talk-2/1", "talk-2/2", "talk-3/1", "talk-3/2"]
    results = json.loads((trained / "results.json").read_text())
    assert (results["evaluated_samples"], results["evaluated_conversations"]) == (18, 12)
    assert {"accuracy_shuffled", "accuracy_no_media", "gap_interval"} <= results.keys()
    shown = [json.loads(line) for line in (trained / "predictions_shuffled.jsonl").read_text().splitlines()]
    for own, other in zip(rows, shown, strict=True):
        assert own["media"] != other["media"]
        assert isinstance(own["media"]["image"], list) == isinstance(other["media"]["image"], list)
    logged = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert {row["evaluated"] for row in logged if row["event"] == "eval"} == {18}


def test_images_are_exchanged_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["eval", str(run), "--exchanged", "--report", "--trust"]) == 0
    printed = capsys.readouterr().out
    for word in ("media shuffled", "no media", "media exchanged"):
        assert word in printed
    results = json.loads((run / "results.json").read_text())
    assert max(len(line) for line in printed.splitlines() if "┃" in line or "│" in line) <= 80
    assert {"accuracy_exchanged", "gap_exchanged", "gap_exchanged_interval"} <= results.keys()
    rows = {row["id"]: row for row in map(json.loads, (run / "predictions.jsonl").read_text().splitlines())}
    exchanged = map(json.loads, (run / "predictions_exchanged.jsonl").read_text().splitlines())
    for row in exchanged:
        media = rows[row["id"]]["media"]["image"]
        assert row["media"]["image"] == (media[::-1] if isinstance(media, list) else media)
    assert cli(["eval", str(run), "--predictions", str(run / "predictions.jsonl"), "--exchanged", "--trust"]) == 2
    assert "--exchanged needs the model's answers" in capsys.readouterr().err
    assert cli(["eval", str(run), "--predictions", str(run / "predictions.jsonl"), "--trust", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluated_conversations"] == 12
    assert cli(["report", str(run), "--samples", "30"]) == 0
    page = (run / "report.html").read_text()
    assert "user: &lt;image&gt;" in page
    assert cli(["verify", str(run), "--trust"]) == 0


def test_a_sample_with_one_broken_image_is_left_out(dwarfs: Path, talks: Path, tmp_path: Path) -> None:
    shutil.copytree(talks, tmp_path / "data", ignore=shutil.ignore_patterns("run"))
    rows = [json.loads(line) for line in (talks / "data/talks.jsonl").read_text().splitlines()]
    (tmp_path / "data/data" / BROKEN).write_bytes(b"no image")
    rows[1]["turns"][0][1] = ["train0.png", BROKEN]
    write(tmp_path / "data", rows)
    changes = {"train": support.train_section(steps=6, batch_size=4, max_bad_media=1), "eval": {"at_end": False}}
    perceptune.train(recipe(dwarfs, tmp_path / "data", **changes), tmp_path / "run", trust=True)
    [told] = [json.loads(line) for line in (tmp_path / "run/bad_media.jsonl").read_text().splitlines()]
    assert Path(told["medium"]).name == BROKEN
    assert BROKEN in told["error"]


def test_tokens_of_earlier_turns_count_in_a_batch(dwarfs: Path, talks: Path, tmp_path: Path) -> None:
    given = recipe(dwarfs, talks, train=support.train_section(steps=1, batch_tokens=60), eval={"at_end": False})
    with pytest.raises(perceptune.UserError, match=r"sample `talk-.*` = 60"):
        perceptune.train(given, tmp_path / "run", trust=True)


def test_several_images_are_asked_about_in_their_order(
    trained: Path, talks: Path, asked: list[perceptune.Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [talks / f"data/train{number}.png" for number in (3, 1)]
    words = ["answer", str(trained), "--trust", *(word for file in files for word in ("--image", str(file)))]
    assert cli([*words, "which colors?"]) == 0
    assert cli([*words, "is <image>redder than <image>?"]) == 0
    assert [(one.media, one.prompt, [mark.at for mark in one.marks]) for one in asked] == [
        ({"image": tuple(files)}, "which colors?", []), ({"image": tuple(files)}, "is redder than ?", [3, 15]),
    ]  # fmt: skip
    capsys.readouterr()
    assert cli([*words, "is <image>red?"]) == 2
    assert "the question has 1 `<image>` for 2 media of modality image" in capsys.readouterr().err
    assert cli([*words, *words[3:], *words[3:5], "which colors?"]) == 2
    assert "has 5 media of modality image, more than `encoders.image.max_media: 4`" in capsys.readouterr().err


def test_rows_with_lists_of_images_are_predicted(trained: Path, talks: Path, tmp_path: Path) -> None:
    first, second, broken = (str(talks / f"data/{name}") for name in ("train0.png", "train1.png", BROKEN))
    Path(broken).write_bytes(b"no image")
    rows = [
        {"id": "one", "image": first, "prompt": "color?"},
        {"id": "pair", "image": [second, first], "prompt": "is <image>redder than <image>?", "targets": ["no"]},
        {"id": "tags", "image": [first, second], "prompt": "is <image>red?"},
        {"id": "broken", "image": [first, broken], "prompt": "which?"},
        {"id": "many", "image": [first] * 5, "prompt": "which?"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = predict(trained, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", trust=True)
    assert (done.rows, done.errors) == (5, 3)
    one, pair, tags, half, many = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (one["media"], one["prompt"]) == ({"image": first}, "color?")
    assert (pair["media"], pair["prompt"]) == ({"image": [second, first]}, "is <image>redder than <image>?")
    assert isinstance(one["answer"], str)
    assert isinstance(pair["answer"], str)
    assert "1 `<image>`" in tags["error"]
    assert BROKEN in half["error"]
    assert "has 5 media of modality image, more than `encoders.image.max_media: 4`" in many["error"]
