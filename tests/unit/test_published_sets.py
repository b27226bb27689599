"""What readers of published sets make of questions and captions: targets by the papers' rules, scores as published."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perceptune.config.registry import leaf
from perceptune.data.holdout_split import HoldoutSplit
from perceptune.data.metrics import rouge
from perceptune.data.tasks.base import QuestionSet, Task
from perceptune.errors import UserError
from perceptune.training.sampler import chosen_target
from published import READERS, ten

pytestmark = pytest.mark.usefixtures("own_cache")


def opened(label: str, folder: Path, **options: Any) -> Task:
    return READERS[label].open(READERS[label].write(folder), **options)


def kinds_of(task: str) -> str:
    """What a task's own class and those it is made of are called."""
    return " ".join(kind.__module__ for kind in leaf("tasks", task).module.TASK.__mro__)


def facts(task: Task, split: str) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Id, name of the picture, prompt and targets of each sample."""
    return [(s.id, "/".join(Path(str(s.media["image"])).parts[-2:]), s.prompt, s.targets) for s in task.samples(split)]


def test_vqa_v2(tmp_path: Path) -> None:
    task = opened("vqa-v2", tmp_path)
    assert task.splits == ("train", "validation")
    picture = "train2014/COCO_train2014_000000000009.jpg"
    drawn = ("là",) * 5 + ("ici",) * 3  # worth 1 and 0.6
    assert facts(task, "train") == [("1", picture, "où?", drawn), ("2", picture, "what?", ("net",))]
    name = "val2014/COCO_val2014_000000000042.jpg"
    assert facts(task, "validation") == [("3", name, "who?", ("a man", "man"))]
    [sample] = task.samples("validation")
    assert sample.meta == {"question_type": "what", "answer_type": "other", "answers": ["a man"] * 9 + ["man"]}
    # Articles go in normalising, so both answers are `man`.
    assert task.score(["The man."], [sample]).summary == {"accuracy": 1.0, "accuracy_other": 1.0}
    assert task.score(["a woman"], [sample]).summary["accuracy"] == 0.0


def test_the_hidden_answers_of_a_test_split_are_not_missed(tmp_path: Path) -> None:
    questions = {"data_subtype": "test2015", "questions": [{"question_id": 5, "image_id": 1, "question": "why?"}]}
    (tmp_path / "test.json").write_text(json.dumps(questions))
    task = opened("vqa-v2", tmp_path, annotations={"test": "test.json"}, check_files=False)
    assert task.splits == ("train", "validation", "test")
    assert facts(task, "test") == [("5", "test2015/COCO_test2015_000000000001.jpg", "why?", ())]
    with pytest.raises(UserError, match="sample `5` has no targets"):
        task.score(["x"], task.samples("test"))


def test_vl_t5_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = opened("vqa-v2 vl-t5", tmp_path)
    assert task.splits == ("train", "validation", "test")
    targets = [row[3] for row in facts(task, "train")]
    assert targets == [("là",) * 10 + ("ici",) * 3, ("2",)]
    assert "1 questions have no answer in their `label` and are left out" in capsys.readouterr().err
    first, second = task.samples("train")
    assert "answers" in first.meta
    assert "answers" not in second.meta
    with pytest.raises(UserError, match=r"sample `2` has no annotators' answers .* and others do"):
        task.score(["là", "2"], [first, second])


def test_a_label_without_answers_is_what_an_answer_is_worth(tmp_path: Path) -> None:
    rows = [{"img_id": "1", "question_id": n, "sent": "q?", "label": label}
            for n, label in enumerate(({"Net": 0.9, "a net": 0.3}, {"pipe": 1.0}, {}))]  # fmt: skip
    task = opened("gqa vl-t5", tmp_path, check_files=False, annotations={"validation": "v.json"})
    (tmp_path / "v.json").write_text(json.dumps(rows))
    samples = task.samples("validation")
    assert [sample.targets for sample in samples] == [("Net", "a net"), ("pipe",), ()]
    scored = task.score(["net", "pipe", "x"], samples)
    assert [row["accuracy"] for row in scored.per_sample] == [0.9, 1.0, 0.0]
    assert [row["accuracy"] for row in task.score(["A  net.", "pip", ""], samples).per_sample] == [0.3, 0.0, 0.0]
    assert task.score(["pipe"], samples[2:]).summary == {"accuracy": 0.0}, "no answer is right"


@pytest.mark.parametrize(
    ("target", "targets"),
    [
        ("best", ("là",)),
        ("all", ("là", "ici", "loin")),
        ("first", ("ici",)),
        ("sampled", 10 * ("là",) + 6 * ("ici",) + 3 * ("loin",)),
    ],
)
def test_what_is_learnt_of_several_answers(target: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    row = {"question_id": 1, "question": "où?", "image": "val2014/1.jpg",
           "answer": ["ici", "ici", *["là"] * 7, "loin"]}  # fmt: skip
    task = opened("ok-vqa lavis", tmp_path, target=target)
    (tmp_path / "okvqa_train.json").write_text(json.dumps([row]))
    assert facts(task, "train")[0][3] == targets


def test_answers_are_drawn_by_their_worth(tmp_path: Path) -> None:
    sample = opened("vqa-v2", tmp_path).samples("train")[0]
    drawn = Counter(chosen_target(sample.targets, 0, epoch, 0) for epoch in range(4000))
    assert drawn["là"] / 4000 == pytest.approx(1 / 1.6, abs=0.03)


def test_only_the_commonest_answers_are_judged(tmp_path: Path) -> None:
    train = [(1, 9, "q?", ten("yes")), (2, 9, "q?", ten("yes")), (3, 9, "q?", ten("net", "red"))]
    val = [(4, 9, "q?", ten("yes")), (5, 9, "q?", ten("red", "yes")), (6, 9, "q?", ten("net"))]
    READERS["vqa-v2"].write(tmp_path)
    for subset, rows in (("train2014", train), ("val2014", val)):
        questions = [{"question_id": i, "image_id": image, "question": q} for i, image, q, _ in rows]
        answers = [{"question_id": i, "answers": several} for i, _, _, several in rows]
        name = f"v2_OpenEnded_mscoco_{subset}_questions.json"
        (tmp_path / name).write_text(json.dumps({"data_subtype": subset, "questions": questions}))
        (tmp_path / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps({"annotations": answers}))
    for top, ids in ((None, ["4", "5", "6"]), (1, ["4"]), (2, ["4", "6"]), (99, ["4", "6"])):
        task = READERS["vqa-v2"].open(tmp_path, top_answers=top, check_files=False)
        assert [sample.id for sample in task.samples("validation")] == ids
        assert len(task.samples("train")) == 3


@pytest.mark.parametrize(("label", "dialect"), [("vqa-v2", "official"), ("ok-vqa", "evalai"), ("textvqa", "evalai")])
def test_each_set_has_its_dialect(label: str, dialect: str, tmp_path: Path) -> None:
    for given, used in ((None, dialect), ("always", "always")):
        task = opened(label, tmp_path, dialect=given)
        samples = task.samples("validation")
        assert task.score(["x"] * len(samples), samples).definition["dialect"] == used


@pytest.mark.parametrize("form", ["vl-t5", "official"])
def test_one_right_answer_by_the_rule_of_the_epalm_release(form: str, tmp_path: Path) -> None:
    """Both sides are made plain; of answers that are alike then the last one's worth counts."""
    task = opened(f"gqa {form}".removesuffix(" official"), tmp_path, check_files=False, dialect="epalm",
                  annotations={"validation": "v.json"})  # fmt: skip
    if form == "vl-t5":
        labels: list[dict[str, float]] = [{"The Net": 0.9, "a net": 0.3}, {"two pipes": 1.0}]
        rows: Any = [{"img_id": "1", "question_id": n, "sent": "q?", "label": label} for n, label in enumerate(labels)]
    else:
        rows = {str(n): {"imageId": "1", "question": "q?", "answer": a} for n, a in enumerate(("the net", "two pipes"))}
    (tmp_path / "v.json").write_text(json.dumps(rows))
    scored = task.score(["Net", "2 pipes."], task.samples("validation"))
    assert [row["accuracy"] for row in scored.per_sample] == [0.3 if form == "vl-t5" else 1.0, 1.0]
    assert scored.definition["dialect"] == "epalm"


def test_gqa(tmp_path: Path) -> None:
    task = opened("gqa", tmp_path)
    assert task.splits == ("train", "validation", "testdev")
    rows = facts(task, "testdev")
    assert rows[0] == ("07333408", "images/2375429.jpg", "What color is the pipe?", ("naïve blue",))
    samples = task.samples("testdev")
    summary = task.score(["Naïve blue.", "no"], samples).summary
    assert summary == {"accuracy": 0.5, "accuracy_query": 1.0, "accuracy_verify": 0.0}


def test_a_split_may_have_a_folder_of_media_of_its_own(tmp_path: Path) -> None:
    """GQA in the layout of the eP-ALM release: Visual Genome's pictures for training, its own for the test."""
    rows = [{"img_id": "7", "label": {"pipe": 1.0}, "question_id": "1", "sent": "what?"}]
    for name in ("GQA/train.json", "GQA/valid.json", "GQA/testdev.json", "VG/VG_100K/7.jpg", "GQA/images/7.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(rows) if name.endswith("json") else "")
    given = {
        "dir": tmp_path, "format": "vl-t5", "template": "{image_id}.jpg",
        "annotations": {"train": "GQA/train.json", "validation": "GQA/valid.json", "testdev": "GQA/testdev.json"},
        "media": {"train": "VG/VG_100K", "validation": "VG/VG_100K", "testdev": "GQA/images"},
    }  # fmt: skip
    module: Any = leaf("tasks", "gqa").module

    def pictures(split: str, **changes: Any) -> list[str]:
        task = module.TASK(module.TASK.Options.model_validate({**given, **changes}))
        return [str(Path(str(sample.media["image"])).relative_to(tmp_path)) for sample in task.samples(split)]

    found = [pictures(split, top_answers=1) for split in ("train", "validation", "testdev")]
    assert found == [["VG/VG_100K/7.jpg"], ["VG/VG_100K/7.jpg"], ["GQA/images/7.jpg"]]
    with pytest.raises(UserError, match=r"`media` names no folder for split `testdev`"):
        pictures("testdev", media={"train": "VG/VG_100K"})
    with pytest.raises(UserError, match=r"`media`: unknown split `test`; did you mean `testdev`"):
        pictures("train", media={"train": "VG/VG_100K", "test": "GQA/images"})
    with pytest.raises(UserError, match=r"GQA/train.json.*VG_100"):
        pictures("train", media={"train": "VG/VG_100"})


def test_a_okvqa(tmp_path: Path) -> None:
    task = opened("a-okvqa", tmp_path)
    [sample] = task.samples("validation")
    assert facts(task, "validation") == [("22Mb", "val2017/000000000007.jpg", "où?", ("là", "ici"))]
    assert task.score(["ici"], [sample]).summary["accuracy"] == pytest.approx(1 / 3)
    file = tmp_path / "aokvqa_v1p0_val.json"
    [row] = json.loads(file.read_text())
    file.write_text(json.dumps([row, {**row, "question_id": "2", "difficult_direct_answer": True}]))
    assert len(READERS["a-okvqa"].open(tmp_path).samples("validation")) == 1
    chosen = READERS["a-okvqa choice"].open(tmp_path).samples("validation")
    assert len(chosen) == 2


def test_a_okvqa_by_choice(tmp_path: Path) -> None:
    task = opened("a-okvqa choice", tmp_path)
    [sample] = task.samples("validation")
    assert (sample.prompt, sample.targets) == ("où? Choices: a, là, c, d.", ("là",))
    for answer, right in (("Là", 1.0), ("(b)", 1.0), ("a", 0.0)):
        assert task.score([answer], [sample]).summary == {"accuracy": right, "no_choice": 0.0}
    assert opened("a-okvqa choice", tmp_path, choices="{choices}?").samples("train")[0].prompt == "a, là, c, d?"


def test_daquar(tmp_path: Path) -> None:
    rows = facts(opened("daquar", tmp_path), "test")
    assert [row[1:] for row in rows] == [
        ("images/image3.png", "what is on the table?", ("lamp, book",)),
        ("images/image12.png", "how many chairs are?", ("2",)),
    ]


def test_coco_captions_train_on_each_and_are_judged_by_all(tmp_path: Path) -> None:
    task = opened("coco-captions", tmp_path)
    assert [(row[0], row[3]) for row in facts(task, "train")] == [
        ("1#0", ("a dog.",)), ("1#1", ("ein Höhlenlöwe",)), ("2#0", ("x",)),
    ]  # fmt: skip
    assert facts(task, "validation") == [("3", "val2014/COCO_val2014_000000000003.jpg", "", ("y", "z"))]
    assert len(opened("coco-captions", tmp_path, restval=False).samples("train")) == 2
    for label, ids in (("coco-captions lavis", ["9#0", "9#1"]), ("coco-captions official", ["1#0", "1#1", "2#0"])):
        assert [row[0] for row in facts(opened(label, tmp_path), "train")] == ids
    assert facts(opened("coco-captions lavis", tmp_path), "test")[0][0] == "42"


def test_captions_are_judged_by_cider(tmp_path: Path) -> None:
    task = opened("nocaps", tmp_path)
    samples = task.samples("validation")
    scored = task.score(["a", "c"], samples)
    assert task.metric in scored.summary
    assert {"CIDEr_in_domain", "CIDEr_out_domain"} < set(scored.summary)
    assert "CIDEr_in_domain" in scored.per_sample[0]
    assert "CIDEr_in_domain" not in scored.per_sample[1]
    assert scored.definition["tokenizer"] == "ptb"
    several = [replace(samples[0], id=text, targets=(text,)) for text in ("a red dog", "two cats", "one bird")]
    found = task.score(["a red dog", "two birds", "no"], [*several])
    assert found.summary["CIDEr_in_domain"] == found.summary["CIDEr"] > 1, "all pictures are of one domain"
    assert [row["CIDEr_in_domain"] for row in found.per_sample] == [row["CIDEr"] for row in found.per_sample]
    loose = opened("nocaps", tmp_path, metric_tokenizer="none")
    assert loose.score(["a", "c"], samples).definition["tokenizer"] == "none"


@pytest.mark.parametrize("label", [name for name, reader in READERS.items() if "captions" in kinds_of(reader.task)])
def test_every_set_of_captions_reports_rouge_if_asked(label: str, tmp_path: Path) -> None:
    plain, asked = (opened(label, tmp_path, **given) for given in ({}, {"rouge": True}))
    samples = [sample for sample in asked.samples(asked.splits[-1]) if sample.targets]
    texts = [sample.targets[0] for sample in samples]
    before, found = plain.score(texts, samples), asked.score(texts, samples)
    alone = rouge.score(texts, [sample.targets for sample in samples])
    assert not any("rouge" in key for key in before.summary)
    added = {key: value for key, value in found.summary.items() if key not in before.summary}
    assert added == {key: alone.summary[key] for key in added}
    assert set(added) == {f"rouge{kind}_{part}_{over}" for kind in "1L" for part in ("f1", "recall")
                          for over in ("mean", "best")}  # fmt: skip
    assert [row["rouge1_recall_mean"] for row in found.per_sample] == [
        r["rouge1_recall_mean"] for r in alone.per_sample
    ]
    assert "rouge-score" in str(found.definition["rouge"])


def test_textcaps_and_flickr_group_their_rows(tmp_path: Path) -> None:
    rows = facts(opened("textcaps", tmp_path), "train")
    assert rows == [(f"0a#{n}", "train_images/0a.jpg", "", (text,)) for n, text in enumerate("ab")]
    assert facts(opened("textcaps", tmp_path), "validation")[0][3] == ("a", "b")
    targets = {
        "flickr8k": ("Zwei Möwen .", "c3"), "flickr8k token": ('Two "gulls .', "b"),
        "flickr8k csv": ("Two gulls, flying .", "b"), "flickr30k": ("Zwei Möwen .", "c3"),
        "flickr30k token": ('Two "gulls .', "b"), "flickr30k csv": ("Two gulls , é .", "b ."),
        "flickr30k hf": ("a", "3 é"),
    }  # fmt: skip
    for label, wanted in targets.items():
        [row] = facts(opened(label, tmp_path), "test")
        assert (row[0], row[3]) == ("3", wanted)
        assert [row[0] for row in facts(opened(label, tmp_path), "train")] == ["1#0", "1#1"]


def test_a_set_has_the_forms_it_is_published_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this data set has no form `hf`; choose from `csv`, `karpathy`, `token`"):
        opened("flickr8k", tmp_path, format="hf")


def test_what_is_held_out_is_judged_as_any_question(tmp_path: Path) -> None:
    task = opened("gqa", tmp_path)
    held = HoldoutSplit(task, 1)
    assert isinstance(task, QuestionSet)
    [sample] = held.samples("held-out")
    assert held.score([sample.targets[0]], [sample]).summary["accuracy"] == 1.0
