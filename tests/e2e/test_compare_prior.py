"""What the wording of questions is worth in a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import support
from perceptune.tools.compare.plan import Plan, make_plan
from perceptune.tools.compare.prior import prior_of
from perceptune.tools.compare.report import terms

RESULT = {
    "select_on": None, "settings": [], "train_samples": 8, "test_samples": 4, "test_on": "test", "seeds": [0],
}  # fmt: skip


def saved(folder: Path, name: str, rows: list[tuple[str, list[str]]]) -> Path:
    path = support.save_data(folder, rows=len(rows), name=name)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, (prompt, targets) in zip(lines, rows, strict=True):
        line |= {"prompt": prompt, "targets": targets}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def planned(dwarfs: Path, folder: Path, train: list[tuple[str, list[str]]], test: list[tuple[str, list[str]]]) -> Plan:
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder") | {"method": "epalm-lin"}
    files = {"train": str(saved(folder, "train", train)), "test": str(saved(folder, "test", test))}
    given["task"] = {"name": "jsonl", **files, "allow_empty_prompt": True}
    (folder / "one.yaml").write_text(yaml.safe_dump(given))
    return make_plan([str(folder / "one.yaml")], ["method.n_levels=2"])


def test_each_prompt_has_its_most_frequent_answer_and_others_the_most_frequent_of_all(
    dwarfs: Path, tmp_path: Path
) -> None:
    train = [("which?", ["a"]), ("which?", ["b"]), ("which?", ["b"]), ("who?", ["c"]), ("who?", ["c"]), ("who?", ["c"])]
    test = [("which?", ["b"]), ("who?", ["c"]), ("who?", ["b"]), ("unseen?", ["c"])]
    found = prior_of(planned(dwarfs, tmp_path, train, test))
    assert found is not None
    assert found["value"] == pytest.approx(3 / 4)
    assert found["interval"][0] <= 3 / 4 <= found["interval"][1]
    assert "most frequent training answer has 0.750" in terms({**RESULT, "prior": found})


def test_rows_without_prompts_have_no_usual_answer(dwarfs: Path, tmp_path: Path) -> None:
    assert prior_of(planned(dwarfs, tmp_path, [("", ["a"])] * 4, [("", ["a"])] * 2)) is None
    assert "Without media" not in terms({**RESULT, "prior": None})
