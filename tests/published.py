"""Made-up files in the form of each published data set, two or three rows with what is awkward in the real ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptune.config.registry import leaf
from perceptune.data.tasks.base import Task


@dataclass(frozen=True)
class Reader:
    """A task with files for it. `wrong` holds damages: (file, old text, new text, what the error says)."""

    task: str
    options: dict[str, Any]
    files: dict[str, str]
    media: tuple[str, ...]
    wrong: tuple[tuple[str, str, str, str], ...] = ()
    empty: tuple[str, str, str] | None = None  # file, old, new: a caption without text

    def write(self, folder: Path, change: Callable[[bytes], bytes] = bytes) -> Path:
        """The files and media in a folder."""
        for name in self.media:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(change(text.encode()))
        return folder

    def open(self, folder: Path, **options: Any) -> Task:
        """The task on these files."""
        module = leaf("tasks", self.task).module
        task: Task = module.TASK(module.TASK.Options.model_validate({"dir": folder, **self.options, **options}))
        return task


READERS: dict[str, Reader] = {}


def zipped(data: bytes) -> bytes:
    """With a byte order mark and CRLF, gzipped."""
    return gzip.compress(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))


def add(label: str, task: str, files: dict[str, Any], media: str, **more: Any) -> None:
    """Adds a reader; what is not text becomes JSON, `media` are names with spaces between."""
    texts = {
        name: what if isinstance(what, str) else json.dumps(what, ensure_ascii=False, indent=1)
        for name, what in files.items()
    }
    READERS[label] = Reader(task, more.pop("options", {}), texts, tuple(media.split()), **more)


def ten(*answers: str) -> list[dict[str, Any]]:
    """Ten annotators' answers: the first given by as many as are left."""
    several = [*answers[:1] * (11 - len(answers)), *answers[1:]]
    return [{"answer_id": i, "answer": a, "answer_confidence": "yes"} for i, a in enumerate(several, 1)]


def _vqa(subset: str, *rows: tuple[int, int, str, list[dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    questions = [{"question_id": i, "image_id": image, "question": q} for i, image, q, _ in rows]
    annotations = [
        {"question_id": i, "image_id": image, "question_type": "what", "answer_type": "other",
         "multiple_choice_answer": answers[0]["answer"], "answers": answers}
        for i, image, _, answers in reversed(rows)  # the order of one file need not be that of the other
    ]  # fmt: skip
    return {"data_subtype": subset, "questions": questions}, {"data_subtype": subset, "annotations": annotations}


def _vqa_sets() -> None:
    train = _vqa("train2014", (1, 9, "où?", ten("là", "ici", "ici")), (2, 9, "what?", ten("net")))
    val = _vqa("val2014", (3, 42, "who?", ten("a man", "man")))
    media = "train2014/COCO_train2014_000000000009.jpg val2014/COCO_val2014_000000000042.jpg"
    for task, prefix in (("vqa-v2", "v2_"), ("ok-vqa", "")):
        names = [(f"{prefix}OpenEnded_mscoco_{s}_questions.json", f"{prefix}mscoco_{s}_annotations.json")
                 for s in ("train2014", "val2014")]  # fmt: skip
        files = dict(zip([name for pair in names for name in pair], [*train, *val], strict=True))
        questions, annotations = names[0]
        add(task, task, files, media, wrong=(
            (questions, '"question_id": 2', '"question_id": 1', "row 1: the id `1` is that of .*row 0, too"),
            (annotations, '"question_id": 2', '"question_id": 1', "row 1: the question_id `1` is that of"),
            (questions, '"question_id": 2', '"question_id": 7', "row 1: question_id `7` is not among"),
            (questions, '"what?"', '" ?"', "row 1: the question holds no text"),
            (questions, '"question":', '"questoin":', "row 0: no key .*did you mean `question`"),
            (questions, '"image_id": 9', '"image_id": "x"', "`image_id` is no whole number: 'x'"),
            (annotations, '"answers"', '"answer"', "row 1: no key `answers`"),
            (annotations, '"answer": "net"', '"answer": 3', r"`answers\[0\]` is a number"),
        ))  # fmt: skip
    rows = [
        {"img_id": "COCO_train2014_000000000009", "question_id": 1, "question_type": "what", "answer_type": "other",
         "sent": "où?", "label": {"là": 1.0, "ici": 0.3}, "answers": ten("là", "ici")},
        {"img_id": "COCO_val2014_000000000042", "question_id": 2, "question_type": "how", "answer_type": "number",
         "sent": "how many?", "label": {"2": 1}},
    ]  # fmt: skip
    unlisted = {**rows[1], "question_id": 3, "label": {}}
    names = {f"karpathy_{split}.json": rows[:1] for split in ("val", "test")}
    add("vqa-v2 vl-t5", "vqa-v2", {"karpathy_train.json": [*rows, unlisted], **names}, media,
        options={"format": "vl-t5"}, wrong=(
            ("karpathy_train.json", '"question_id": 2', '"question_id": 1', "row 1: the id `1` is that of"),
            ("karpathy_train.json", '"là": 1.0', '"là": 7', "row 0: `label`: the worth of `là` is no number"),
            ("karpathy_train.json", '"img_id"', '"image"', "row 0: no key `img_id`"),
        ))  # fmt: skip
    lavis = [{"question_id": 1, "question": "où?", "answer": ["là", "là", "ici"], "image": "val2014/1.jpg"}]
    files = {"okvqa_train.json": lavis, "okvqa_val.json": lavis}
    add("ok-vqa lavis", "ok-vqa", files, "val2014/1.jpg", options={"format": "lavis"})


def _other_questions() -> None:
    rows = {
        "07333408": {"imageId": "2375429", "question": "What color is the pipe?", "answer": "naïve blue",
                     "types": {"structural": "query", "semantic": "attr"}, "isBalanced": True},
        "8": {"imageId": "n12", "question": "Is it?", "answer": "yes", "types": {"structural": "verify"}},
    }  # fmt: skip
    files = {f"{name}_balanced_questions.json": rows for name in ("train", "val", "testdev")}
    add("gqa", "gqa", files, "images/2375429.jpg images/n12.jpg", wrong=(
        ("train_balanced_questions.json", '"question": "Is', '"sentence": "Is', "`8`: no key `sent` or `question`"),
        ("train_balanced_questions.json", '"answer": "yes"', '"answer": 1', "`8`: `answer` is a number"),
    ))  # fmt: skip
    row = {"img_id": "2375429", "label": {"pipe": 1.0}, "question_id": "07333408", "sent": "what?"}
    files = {f"{name}.json": [row] for name in ("train", "valid", "testdev")}
    add("gqa vl-t5", "gqa", files, "images/2375429.jpg", options={"format": "vl-t5"})
    base = {"question_id": "22Mb", "question": "où?", "choices": ["a", "là", "c", "d"], "correct_choice_idx": 1,
            "direct_answers": ["là"] * 9 + ["ici"], "difficult_direct_answer": False}  # fmt: skip
    train = [{**base, "split": "train", "image_id": 299207}, {**base, "question_id": "2", "image_id": 299207}]
    files = {"aokvqa_v1p0_train.json": train, "aokvqa_v1p0_val.json": [{**base, "split": "val", "image_id": 7}]}
    media = "train2017/000000299207.jpg val2017/000000000007.jpg"
    name = "aokvqa_v1p0_train.json"
    add("a-okvqa", "a-okvqa", files, media, wrong=(
        (name, '"question_id": "2"', '"question_id": "22Mb"', "row 1: the id `22Mb`"),
    ))  # fmt: skip
    add("a-okvqa choice", "a-okvqa", files, media, options={"answers": "choice"}, wrong=(
        (name, '"correct_choice_idx": 1', '"correct_choice_idx": 4', "a number that names none of 4 choices"),
        (name, '"choices"', '"chioces"', "`chioces`; did you mean `choices`"),
    ))  # fmt: skip
    rows_text = [{"question_id": 34602, "question": "what brand?", "image_id": "0054c91397f2fe05",
                  "answers": ["nous les gosses"] * 9 + ["dakota"], "set_name": "train"}]  # fmt: skip
    files = {f"TextVQA_0.5.1_{name}.json": {"dataset_name": "textvqa", "data": rows_text} for name in ("train", "val")}
    add("textvqa", "textvqa", files, "train_images/0054c91397f2fe05.jpg", wrong=(
        ("TextVQA_0.5.1_train.json", '"data"', '"dta"', "no key `data`, but `dta`; did you mean `data`"),
    ))  # fmt: skip
    text = "what is on the table in the image3 ?\nlamp, book\n\nhow many chairs are in the image12 ?\n2\n"
    add("daquar", "daquar", {f"qa.37.raw.{name}.txt": text for name in ("train", "test")},
        "images/image3.png images/image12.png", wrong=(
            ("qa.37.raw.train.txt", "image12 ?\n2", "image12 ?", "line 4: a question without an answer"),
            ("qa.37.raw.train.txt", "the image12 ?", "it", "line 4: no question that ends in its image's name"),
        ))  # fmt: skip
    text = 'question,answer,image_id\n"what, où?","lamp, book",image3\n'
    add("daquar csv", "daquar", {"data_train.csv": text, "data_eval.csv": text}, "images/image3.png",
        options={"format": "csv"},
        wrong=(("data_train.csv", '"lamp, book"', "lamp, book", "line 2: 4 columns"),))  # fmt: skip


def _coco(*pictures: tuple[int, str, list[str]]) -> dict[str, Any]:
    captions = [(i, text) for i, _, texts in pictures for text in texts]
    domains = ("out-domain", "in-domain")
    return {
        "images": [{"id": i, "file_name": name, "domain": domains[i % 2]} for i, name, _ in pictures],
        "annotations": [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(captions)],
    }  # fmt: skip


def _captions() -> None:
    def picture(split: str, number: int, *texts: str) -> dict[str, Any]:
        return {"filepath": "val2014", "filename": f"COCO_val2014_{number:012d}.jpg", "cocoid": number, "split": split,
                "sentences": [{"raw": text, "tokens": [], "sentid": n} for n, text in enumerate(texts)]}  # fmt: skip

    parts = [picture("train", 1, "a dog.", "ein Höhlenlöwe"), picture("restval", 2, "x"), picture("val", 3, "y", "z "),
             picture("test", 4, "w")]  # fmt: skip
    media = " ".join(f"val2014/COCO_val2014_{number:012d}.jpg" for number in (1, 2, 3, 4))
    name = "dataset_coco.json"
    add("coco-captions", "coco-captions", {name: {"dataset": "coco", "images": parts}}, media, wrong=(
        (name, '"split": "restval"', '"split": "tset"', "row 1: unknown split `tset`; did you mean `test`"),
        (name, '"raw": "x"', '"row": "x"', r"row 1: `raw\[0\]` is null"),
        (name, '"raw": "x"', '"raw": " . "', "row 1: `raw` holds no text"),
        (name, '"images"', '"image"', "no key `images`, but `image`"),
    ), empty=(name, '"raw": "ein Höhlenlöwe"', '"raw": ""'))  # fmt: skip
    rows = [
        {"caption": text, "image": "train2014/COCO_train2014_000000000009.jpg", "image_id": "coco_9"} for text in "ab"
    ]
    several = [{"caption": ["a", "b"], "image": "val2014/COCO_val2014_000000000042.jpg"}]
    add("coco-captions lavis", "coco-captions", {
        "coco_karpathy_train.json": rows, "coco_karpathy_val.json": several, "coco_karpathy_test.json": several,
    }, "train2014/COCO_train2014_000000000009.jpg val2014/COCO_val2014_000000000042.jpg",
        options={"format": "lavis"},
        empty=("coco_karpathy_train.json", '"caption": "b"', '"caption": " "'))  # fmt: skip
    files = {f"annotations/captions_{subset}2014.json": _coco((1, "ö.jpg", ["a", "b"]), (2, "2.jpg", ["c"]))
             for subset in ("train", "val")}  # fmt: skip
    name = "annotations/captions_train2014.json"
    add("coco-captions official", "coco-captions", files, "train2014/ö.jpg val2014/ö.jpg train2014/2.jpg val2014/2.jpg",
        options={"format": "official"}, wrong=(
            (name, '"id": 2,\n   "file_name"', '"id": 1,\n   "file_name"', "row 1: the id `1` is that of .*row 0, too"),
            (name, '"image_id": 2', '"image_id": 3', "row 2: there is no image with the id `3`"),
        ))  # fmt: skip
    add("nocaps", "nocaps", {
        "nocaps_val_4500_captions.json": _coco((1, "a.jpg", ["a", "b"]), (2, "b.jpg", ["ç"])),
    }, "val/a.jpg val/b.jpg")  # fmt: skip
    texts = [
        {"caption_id": n, "caption_str": text, "reference_strs": ["a", "b"], "image_id": "0a"}
        for n, text in enumerate("ab")
    ]
    files = {f"TextCaps_0.1_{name}.json": {"data": texts} for name in ("train", "val")}
    add("textcaps", "textcaps", files, "train_images/0a.jpg", wrong=(
        ("TextCaps_0.1_train.json", '"caption_id": 1', '"caption_id": 0', "row 1: the caption_id `0` is that of"),
    ))  # fmt: skip


def _flickr() -> None:
    for task, folder, token, table, lists in (
        ("flickr8k", "Images", "Flickr8k.token.txt", "captions.txt", "Flickr_8k.{}Images.txt"),
        ("flickr30k", "flickr30k-images", "results_20130124.token", "results.csv", "{}.txt"),
    ):
        media = f"{folder}/1.jpg {folder}/2.jpg {folder}/3.jpg"
        pictures = [{"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": "Zwei Möwen ."}, {"raw": f"c{n}"}]}
                    for n, split in enumerate(("train", "val", "test"), 1)]  # fmt: skip
        add(task, task, {f"dataset_{task}.json": {"images": pictures}}, media)
        middle = ("train", "dev" if task == "flickr8k" else "val", "test")
        end = ".jpg\n" if task == "flickr8k" else "\n"
        ends = {lists.format(name): f"{n}{end}" for n, name in enumerate(middle, 1)}
        lines = "".join(f"{n}.jpg#{k}\t{text}\n" for n in (1, 2, 3) for k, text in enumerate(('Two "gulls .', "b")))
        add(f"{task} token", task, {token: lines, **ends}, media, options={"format": "token"},
            wrong=((token, "1.jpg#1\tb", "1.jpg#1 b", "line 2: 1 columns, expected 2"),),
            empty=(token, "1.jpg#1\tb", "1.jpg#1\t ."))  # fmt: skip
        rows = "".join(f'{n}.jpg,"Two gulls, flying ."\n{n}.jpg,b\n' for n in (1, 2, 3))
        text = f"image,caption\n{rows}"
        if task == "flickr30k":
            bars = "".join(f"{n}.jpg| 0| Two gulls , é .\n{n}.jpg| 4   b .\n" for n in (1, 2, 3))  # one bar is lost
            text = f"image_name| comment_number| comment\n{bars}"
        wrong: tuple[tuple[str, str, str, str], ...]
        wrong = (
            (table, "1.jpg,b", "1.jpg,b,c", "line 3: 3 columns"),
            (table, "1.jpg,b", '1.jpg,"b', "line 3: ',' expected after"),
        )
        if task == "flickr30k":
            wrong = ((table, "1.jpg| 4 ", "1.jpg 4 ", "line 3: expected `image_name.* got 1.jpg 4"),)
        add(f"{task} csv", task, {table: text, **ends}, media, options={"format": "csv"}, wrong=wrong)
    text = "raw,sentids,split,filename,img_id\n" + "".join(
        f'"[""a"", ""{n} é""]","[{n}]",{split},{n}.jpg,{n}\n' for n, split in enumerate(("train", "val", "test"), 1)
    )
    name = "flickr_annotations_30k.csv"
    media = "flickr30k-images/1.jpg flickr30k-images/2.jpg flickr30k-images/3.jpg"
    add("flickr30k hf", "flickr30k", {name: text}, media,
        options={"format": "hf"}, wrong=(
            (name, '"[""a"", ""1', '"(""a"", ""1', "line 2: `raw` is no JSON list"),
            (name, "train", "trian", "line 2: unknown split `trian`; did you mean `train`"),
        ))  # fmt: skip


_vqa_sets()
_other_questions()
_captions()
_flickr()
