"""Tasks, `jsonl` above all: rows in a fixed order, scores per answer type, and errors that name the line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perceptune.config.registry import leaf
from perceptune.data.tasks.base import GivenFiles, Task
from perceptune.data.tasks.easy_vqa import EasyVQA
from perceptune.data.tasks.jsonl import JSONLines
from perceptune.errors import UserError
from perceptune.types import Sample

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("name", ["easy-vqa", "easy_vqa", "jsonl"])
def test_a_leaf_names_its_task(name: str) -> None:
    assert issubclass(leaf("tasks", name).module.TASK, Task)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="limit"):
        EasyVQA.Options.model_validate({"limit": 3})


def test_case_is_kept_unless_the_task_says_otherwise(tmp_path: Path) -> None:
    assert JSONLines(JSONLines.Options(train=tmp_path)).clean("Paris.") == "Paris"
    assert JSONLines(JSONLines.Options(train=tmp_path, lowercase=True)).clean("Paris.") == "paris"


Write = Callable[..., JSONLines]
ROW: dict[str, Any] = {"image": "pictures/cat.jpg", "prompt": "what?", "targets": ["a cat", "cat"]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (or text, or bytes) as the training file beside `pictures/cat.jpg` and `sound.wav`."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.jpg").touch()
    (tmp_path / "sound.wav").touch()

    def write(*rows: Any, split: str = "train", **options: Any) -> JSONLines:
        data = b"".join(
            (row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode())
            + b"\n"
            for row in rows
        )
        (tmp_path / "rows.jsonl").write_bytes(data)
        files = {"train": tmp_path / "rows.jsonl", split: tmp_path / "rows.jsonl"}
        return JSONLines(JSONLines.Options.model_validate({**files, **options}))

    return write


def test_a_row_becomes_a_sample(write: Write, tmp_path: Path) -> None:
    absolute = str(tmp_path / "sound.wav")
    plain, full = write(
        ROW, {"image": None, "audio": absolute, "prompt": "où?", "targets": "là", "id": 7, "source": {"page": 3}}
    ).samples("train")
    assert plain.id == "train-000001", "the line"
    assert plain.media == {"image": tmp_path / "pictures" / "cat.jpg"}
    assert (plain.prompt, plain.targets, plain.meta) == ("what?", ("a cat", "cat"), {})
    assert full.id == "7"
    assert full.media == {"audio": tmp_path / "sound.wav"}
    assert (full.prompt, full.targets, full.meta) == ("où?", ("là",), {"source": {"page": 3}})


@pytest.mark.parametrize("zipped", [False, True])
def test_bom_crlf_blank_lines_and_line_separators(zipped: bool, tmp_path: Path) -> None:
    rows = [{"image": "a.png", "prompt": f"q{n}\u2028?", "targets": "ж"} for n in range(2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    data = ("\ufeff\r\n" + "\r\n \t\r\n".join(lines)).encode()
    file = tmp_path / "rows"  # no suffix: the content tells
    file.write_bytes(gzip.compress(data) if zipped else data)
    samples = JSONLines(JSONLines.Options(train=file, check_files=False)).samples("train")
    assert [sample.prompt for sample in samples] == ["q0\u2028?", "q1\u2028?"]
    assert [sample.id for sample in samples] == ["train-000002", "train-000004"]


def test_splits_are_the_files_given(write: Write) -> None:
    assert write(ROW).splits == ("train",)
    assert write(ROW, split="validation").splits == ("train", "validation")
    with pytest.raises(UserError, match="unknown split `test`; choose from `train`"):
        write(ROW).samples("test")


def test_only_a_test_file_may_lack_targets(write: Write) -> None:
    questions = {"image": "pictures/cat.jpg", "prompt": "what?"}
    task = write(questions, split="test")
    samples = task.samples("test")
    assert samples[0].targets == ()
    with pytest.raises(UserError, match="sample `test-000001` has no targets"):
        task.score(["cat"], samples)
    for split in ("train", "validation"):
        with pytest.raises(UserError, match="no key `targets`"):
            write(questions, split=split).samples(split)


@pytest.mark.parametrize("key", ["caption", "captions", "text"])
def test_captions_are_targets_under_their_usual_names(write: Write, key: str) -> None:
    row = {"image": "pictures/cat.jpg", key: ["a cat", "one cat"], "license": "CC0"}
    sample = write(row, metric="CIDEr").samples("train")[0]
    assert (sample.targets, dict(sample.meta)) == (("a cat", "one cat"), {"license": "CC0"})
    both = write({**ROW, key: "a remark"}, metric="CIDEr").samples("train")[0]
    assert (both.targets, dict(both.meta)) == (tuple(ROW["targets"]), {key: "a remark"})
    with pytest.raises(UserError, match=f"`{key}` is an object"):
        write({**row, key: {"a": 3}}, metric="CIDEr").samples("train")


def test_text_is_a_target_only_of_captions(write: Write) -> None:
    with pytest.raises(UserError, match="no key `targets`"):
        write({"image": None, "prompt": "what?", "text": "a cat"}).samples("train")


def test_scores_per_answer_type(write: Write) -> None:
    task = write(ROW, {**ROW, "answer_type": "Animal"}, {**ROW, "answer_type": None}, lowercase=True)
    samples = task.samples("train")
    assert "answer_type" not in samples[2].meta
    scored = task.score(["Cat.", "dog", "a  cat"], samples)
    assert scored.summary == {"accuracy": pytest.approx(2 / 3), "accuracy_animal": 0.0}


def test_targets_are_judged_like_answers(write: Write) -> None:
    task = write({**ROW, "targets": "A cat."}, lowercase=True)
    samples = task.samples("train")
    assert task.score(["A cat."], samples).summary == {"accuracy": 1.0}
    assert task.score([task.clean("A cat.")], samples).summary == {"accuracy": 1.0}


def test_a_metric_that_never_comes_is_refused_before_training(write: Write) -> None:
    rows = [ROW, {**ROW, "answer_type": "yes/no"}]
    assert write(*rows, split="validation", metric="accuracy_yes_no").samples("validation")
    for split in ("train", "validation", "test"):  # whichever file chooses the best checkpoint
        with pytest.raises(UserError, match=r"`accuracy_yesno`; did you mean `accuracy_yes_no`\?"):
            write(*rows, split=split, metric="accuracy_yesno").samples(split)


def test_captions_need_no_prompt_of_their_own(write: Write) -> None:
    rows = [{**ROW, "prompt": ""}, {**ROW, "prompt": None}, {"image": "pictures/cat.jpg", "targets": "x"}]
    task = write(*rows, allow_empty_prompt=True)
    assert [sample.prompt for sample in task.samples("train")] == ["", "", ""]


def without(key: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in {**ROW, **more}.items() if name != key}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without("prompt", promt="?"), r"no key `prompt`, but `promt`; did you mean `prompt`\?"),
        (without("prompt", question="?"), "no key `prompt`; the keys are `image`, `targets`, `question`"),
        (without("image", imgae="a"), r"no key .*`imgae`; did you mean `image`\?"),
        (without("targets", target="a"), r"`target`; did you mean `targets`\?"),
        ({}, "no key `image` or `audio` or `video`; the keys are none"),
        ({**ROW, "prompt": "  "}, "`prompt` holds no text"),
        ({**ROW, "prompt": " ?!\u200b"}, "`prompt` holds no text.*allow_empty_prompt"),
        ({**ROW, "prompt": None}, "`prompt` is null, not a string"),
        ({**ROW, "prompt": ["a"]}, "`prompt` is a list, not a string"),
        ({**ROW, "prompt": "a\ud83d"}, "`prompt` holds an unpaired surrogate"),
        ({**ROW, "targets": []}, "`targets` is empty"),
        ({**ROW, "targets": None}, "`targets` is null"),
        ({**ROW, "targets": {}}, "`targets` is an object, not a string or a list of strings"),
        ({**ROW, "targets": True}, '`targets` is a boolean, .*"yes" or "no"'),
        ({**ROW, "image": ["pictures/cat.jpg", 3]}, r"`image\[1\]` is a number, not a string"),
        (without("image", images=["pictures/cat.jpg"] * 2, prompt="<image>?"), "1 `<image>` .*, but 2 images given"),
        (without("image", images=[3]), "`images` is a number, not a string"),
        ({**ROW, "targets": ["a", True]}, r"`targets\[1\]` is a boolean"),
        ({**ROW, "targets": ["a", " . "]}, "`targets` holds no text"),
        ({**ROW, "image": 3}, "`image` is a number"),
        ({**ROW, "image": ""}, "`image` is empty"),
        ({**ROW, "image": "https://example.org/a.png"}, "`image` is an address, not a file"),
        ({**ROW, "image": "data:image/png;base64," + "A" * 9999}, r"address.*A\.\.\.$"),
        ({**ROW, "id": 1.5}, "`id` is a number"),
        ({**ROW, "id": True}, "`id` is a boolean"),
        ({**ROW, "id": " "}, "`id` is empty"),
        ({**ROW, "answer_type": 3}, "`answer_type` is a number"),
        ('{"image": "a"', "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ("{'image': 1}", "invalid JSON"),
        ("[1]", "a list, not an object"),
        ("null", "null, not an object"),
        (b'{"image": "\xe9"}', "not UTF-8"),
    ],
)
def test_an_error_names_the_line_and_the_key(row: Any, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 3: .*{message}"):
        write(ROW, "", row).samples("train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": null, "prompt": "a", "targets": "b"},', "invalid JSON.*no comma stands behind it"),
        ("{'image': null, 'prompt': 'a', 'targets': 'b'}", "invalid JSON.*double quotes around keys"),
        ('{"image": null, "prompt": "a", "targets": "b", "id": 1.0}', r"`id` is a number with a point \(1.0\)"),
    ],
)
def test_what_people_write_in_place_of_json_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 1: {message}"):
        JSONLines(JSONLines.Options(train=tmp_path / "rows.jsonl")).samples("train")


def test_a_misspelt_key_beside_all_required_ones_is_meta(write: Write) -> None:
    assert write({**ROW, "promt": "x"}).samples("train")[0].meta == {"promt": "x"}


def test_duplicate_ids_name_both_lines(write: Write) -> None:
    rows = [{**ROW, "id": "a"}, ROW, {**ROW, "id": "a"}]
    with pytest.raises(UserError, match=r"line 3: the id `a` is that of line 1, too"):
        write(*rows).samples("train")


def test_missing_files_are_found_before_training(write: Write) -> None:
    rows = [ROW, {**ROW, "image": "pictures/cta.jpg"}, {**ROW, "image": "picture/cat.jpg"}]
    with pytest.raises(UserError, match=r"line 2: .*`image`.*no `cta\.jpg`; did you mean `cat\.jpg`\?.*1 more files"):
        write(*rows).samples("train")
    with pytest.raises(UserError, match=r"line 1: .*no `picture`; did you mean `pictures`\?$"):
        write(rows[2]).samples("train")
    assert len(write(*rows, check_files=False).samples("train")) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("pictures", "it is a folder"), ("x" * 5000, r"x\.\.\.: .*name too long"), ("qqq", r"holds no `qqq`$")],
)
def test_media_that_are_no_files(name: str, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=rf"(?i)line 1: .*{message}"):
        write({**ROW, "image": name}).samples("train")


def test_a_file_that_is_not_there_or_holds_nothing(write: Write, tmp_path: Path) -> None:
    write(ROW)
    with pytest.raises(UserError, match=r"no `row\.jsonl`; did you mean `rows\.jsonl`\?"):
        JSONLines(JSONLines.Options(train=tmp_path / "row.jsonl")).samples("train")
    with pytest.raises(UserError, match="it is a folder"):
        JSONLines(JSONLines.Options(train=tmp_path)).samples("train")
    with pytest.raises(UserError, match="holds no samples"):
        write("", " ").samples("train")


def test_a_truncated_archive(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(ROW).encode() * 50)
    for data in (whole[: len(whole) // 2], whole[:12] + b"\xff" * 20):
        (tmp_path / "rows.jsonl.gz").write_bytes(data)
        with pytest.raises(UserError, match="cannot read"):
            JSONLines(JSONLines.Options(train=tmp_path / "rows.jsonl.gz")).samples("train")


class Own(GivenFiles):
    """A reader of another author, which has all samples at once."""

    class Options(GivenFiles.Options):
        train: Path
        validation: Path | None = None
        test: Path | None = None

    def samples(self, split: str) -> list[Sample]:
        return [Sample("a", {}, "which?", ("this",))]


def test_a_reader_of_another_author_needs_samples_alone(tmp_path: Path) -> None:
    own = Own(Own.Options(train=tmp_path, metric="CIDEr"))
    assert [row.id for _, row in own.examine("train").rows if isinstance(row, Sample)] == ["a"]
