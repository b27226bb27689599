"""Small data sets in the forms that users have them in, each in an awkward variant, with what is said of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

import clips
import tars

COUNT = 24  # media of a data set
COLORS = ("red", "green", "blue")
RGB = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}


class Case(NamedTuple):
    """A data set: where it lies, further words of the commands, and pieces of the line about it."""

    place: str
    said: Sequence[str]
    words: Sequence[str] = ()
    split: str = "test"  # that is evaluated
    asked: str | None = None  # data for `predict`, if not all of it


FORMS: dict[str, Callable[[Path], Case]] = {}


def form(make: Callable[[Path], Case]) -> Callable[[Path], Case]:
    FORMS[make.__name__] = make
    return make


@cache
def picture(number: int, kind: str = "PNG") -> bytes:
    """A small image whose color is that of its number."""
    values = np.full((12, 12, 3), RGB[COLORS[number % 3]], np.uint8)
    values[number % 12, number // 12] = 255
    found = io.BytesIO()
    Image.fromarray(values).save(found, kind)
    return found.getvalue()


@cache
def sound(number: int) -> bytes:
    wave = 0.5 * np.sin(2 * np.pi * (200 + 300 * (number % 3)) * np.arange(4000) / 8000 + number)
    found = io.BytesIO()
    soundfile.write(found, wave, 8000, format="WAV")
    return found.getvalue()


def write(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def pictures(folder: Path, template: str = "{n}.png") -> list[str]:
    names = [template.format(n=number) for number in range(COUNT)]
    for number, name in enumerate(names):
        write(folder / name, picture(number))
    return names


def table(rows: Sequence[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8", start: str = "") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return (start + text.getvalue()).encode(encoding)


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def color(number: int) -> str:
    return COLORS[number % 3]


def caption(number: int) -> str:
    return f"a {color(number)} square with a dot at {number}"


# Folders


@form
def classes(folder: Path) -> Case:
    for number in range(COUNT):
        write(folder / f"{color(number)} cup/{number}.PNG", picture(number))
    write(folder / "Thumbs.db", b"x")
    write(folder / "__MACOSX/red cup/._1.PNG", b"x")
    write(folder / "README.txt", "about this data set")
    return Case(str(folder), ["images in folders named by class", "--task folder", "3 classes", "task.prompt"])


@form
def classes_of_sounds(folder: Path) -> Case:
    for number in range(COUNT):
        write(folder / color(number) / f"{number % 12}-{number}.wav", sound(number))
    words = ["--group-by", r"^(\d+)-"]
    return Case(str(folder), ["audio in folders named by class", "24 audio files", "What do you hear?"], words)


@form
def classes_in_splits(folder: Path) -> Case:
    for number in range(COUNT):
        split = ("Train", "Train", "val", "test")[number % 4]
        write(folder / split / color(number) / f"{number}.jpg", picture(number, "JPEG"))
    return Case(str(folder), ["with the splits `train`, `validation`, `test`", "3 classes", "--validation"])


@form
def image_folder(folder: Path) -> Case:
    names = pictures(folder, "part/{n}.png")
    write(folder / "metadata.jsonl", lines([{"file_name": name, "text": caption(n)} for n, name in enumerate(names)]))
    return Case(str(folder), ["images with metadata.jsonl", "captions", "metric CIDEr"])


@form
def image_folder_with_questions(folder: Path) -> Case:
    names = pictures(folder)
    rows = [["file_name", "question", "answer"], *([name, f"is it {color(n)}?", "yes"] for n, name in enumerate(names))]
    rows[-1][2] = "no"
    write(folder / "metadata.csv", table(rows, ";"))
    return Case(str(folder), ["images with metadata.csv", "`question` is the prompt", "questions"])


@form
def audio_folder(folder: Path) -> Case:
    for number in range(COUNT):
        write(folder / f"data/{number}.wav", sound(number))
    rows = [{"file_name": f"data/{n}.wav", "text": caption(n)} for n in range(COUNT)]
    write(folder / "metadata.jsonl", lines(rows))
    return Case(str(folder), ["audio with metadata.jsonl", "captions"])


@form
def clips_in_classes(folder: Path) -> Case:
    clip = clips.clip([0, 1, 2])
    for number in range(COUNT):
        write(folder / ("fight", "calm")[number % 2] / f"{number}.mp4", clip)
    return Case(str(folder), ["videos in folders named by class", "2 classes", "What happens in the video?"])


@form
def texts_beside(folder: Path) -> Case:
    pictures(folder, "some/{n}.png")
    for number in range(COUNT - 1):
        write(folder / f"some/{number}.txt", f"\ufeff{caption(number)}\n")
    return Case(str(folder), ["images with a text file beside each", "captions"])


@form
def folder_with_a_table(folder: Path) -> Case:
    names = pictures(folder / "Images")
    rows = [["image", "caption"], *([name, f"{caption(n)} {which}"] for n, name in enumerate(names) for which in "ab")]
    write(folder / "captions.txt", table(rows))
    return Case(str(folder), ["a CSV table", "48 samples with 24 images", "Images (--media)"])


@form
def folder_with_files_of_splits(folder: Path) -> Case:
    names = pictures(folder / "photos")
    for split, part in (("train", names[4:]), ("val", names[:4])):
        rows = [{"image": name, "prompt": "which color?", "targets": color(int(name[:-4]))} for name in part]
        write(folder / f"my_{split}.jsonl", lines(rows))
    said = ["JSON lines", "20 samples", "--validation"]
    return Case(str(folder), said, split="validation", asked=str(folder / "my_val.jsonl"))


# Published annotation files


def coco(names: Sequence[str]) -> dict[str, Any]:
    images = [{"id": 7 * n, "file_name": name, "height": 12, "width": 12} for n, name in enumerate(names)]
    notes = [{"id": 2 * n + k, "image_id": 7 * n, "caption": caption(n)} for n in range(len(names)) for k in (0, 1)]
    return {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": notes}


@form
def coco_captions(folder: Path) -> Case:
    names = pictures(folder / "train2017", "{n:012d}.jpg")
    pictures(folder / "val2017", "{n:012d}.jpg")
    file = write(folder / "annotations/captions_train2017.json", json.dumps(coco(names)))
    return Case(str(file), ["COCO captions", "--task coco-captions", "train2017 (--media)", "metric CIDEr"])


@form
def coco_folder(folder: Path) -> Case:
    for split in ("train2014", "val2014"):
        names = pictures(folder / split, f"COCO_{split}_{{n:012d}}.jpg")
        write(folder / f"annotations/captions_{split}.json", json.dumps(coco(names)))
    return Case(str(folder), ["COCO captions", "--validation"], split="validation")


@form
def karpathys_file(folder: Path) -> Case:
    names = pictures(folder / "images")
    rows = [
        {"filename": name, "imgid": n, "sentids": [n], "split": ("train", "val", "test")[max(0, (n - 15) // 3)],
         "sentences": [{"raw": caption(n), "sentid": n, "imgid": n, "tokens": []}]}
        for n, name in enumerate(names)
    ]  # fmt: skip
    file = write(folder / "dataset_flickr8k.json", json.dumps({"images": rows, "dataset": "flickr8k"}))
    return Case(str(file), ["captions in Karpathy's splits", "--task flickr8k"])


@form
def vqa_files(folder: Path) -> Case:
    pictures(folder / "train2014", "COCO_train2014_{n:012d}.jpg")
    asked = [{"image_id": n, "question": "which color?", "question_id": 10 * n} for n in range(COUNT)]
    given = [
        {"image_id": n, "question_id": 10 * n, "question_type": "what", "answer_type": "other",
         "answers": [{"answer": color(n), "answer_id": k + 1, "answer_confidence": "yes"} for k in range(10)],
         "multiple_choice_answer": color(n)}
        for n in range(COUNT)
    ]  # fmt: skip
    head = {"data_type": "mscoco", "data_subtype": "train2014"}
    file = write(folder / "v2_OpenEnded_mscoco_train2014_questions.json", json.dumps({**head, "questions": asked}))
    write(folder / "v2_mscoco_train2014_annotations.json", json.dumps({**head, "annotations": given}))
    return Case(str(file), ["VQA questions", "--task vqa-v2", "questions"])


@form
def gqa_file(folder: Path) -> Case:
    pictures(folder / "images", "n{n}.jpg")
    rows = {
        f"0{n}": {"imageId": f"n{n}", "question": "which color?", "answer": color(n), "types": {"structural": "query"}}
        for n in range(COUNT)
    }
    return Case(str(write(folder / "train_balanced_questions.json", json.dumps(rows))), ["GQA questions", "--task gqa"])


# Conversations


@form
def llava_file(folder: Path) -> Case:
    names = pictures(folder / "pictures", "coco/train2017/{n}.png")
    rows = [
        {"id": str(n), "image": name, "conversations": [
            {"from": "human", "value": "<image>\nWhich color?"}, {"from": "gpt", "value": color(n)},
        ]} for n, name in enumerate(names)
    ]  # fmt: skip
    file = write(folder / "llava_mix.json", json.dumps(rows, indent=1))
    return Case(str(file), ["conversations", "--task llava", "pictures (--media)"])


@form
def messages_lines(folder: Path) -> Case:
    names = pictures(folder)
    rows = [
        {"messages": [{"role": "user", "content": "<image>Which color?"}, {"role": "assistant", "content": color(n)}],
         "images": [name]} for n, name in enumerate(names)
    ]  # fmt: skip
    return Case(str(write(folder / "talks.jsonl", lines(rows))), ["conversations", "--task messages"])


@form
def share_gpt(folder: Path) -> Case:
    names = pictures(folder)
    rows = [
        {"images": [name], "conversations": [
            {"from": "user", "value": "Which color?"}, {"from": "assistant", "value": color(n)},
        ]} for n, name in enumerate(names)
    ]  # fmt: skip
    return Case(str(write(folder / "sharegpt.json", json.dumps(rows))), ["conversations", "3 classes"])


# Rows


@form
def json_lines(folder: Path) -> Case:
    rows = [{"image": name, "prompt": f"color {n}?", "targets": [color(n)]} for n, name in enumerate(pictures(folder))]
    file = write(folder / "rows.jsonl.gz", gzip.compress(lines(rows).replace("\n", "\r\n\r\n").encode("utf-8-sig")))
    return Case(str(file), ["JSON lines (--task jsonl)", "questions", "metric accuracy"])


@form
def json_lines_with_other_names(folder: Path) -> Case:
    rows = [{"img_path": name, "Question": f"color {n}?", "Answer": n} for n, name in enumerate(pictures(folder))]
    file = write(folder / "rows.jsonl", lines(rows).encode("utf-16"))
    return Case(str(file), ["`img_path` is the image (task.image_key)", "`Answer` is the answer (task.target_key)"])


@form
def json_lines_of_captions(folder: Path) -> Case:
    rows = [{"image": [name], "caption": caption(n)} for n, name in enumerate(pictures(folder))]
    return Case(str(write(folder / "rows.ndjson", lines(rows))), ["captions", "metric CIDEr"])


@form
def manifest(folder: Path) -> Case:
    for number in range(COUNT):
        write(folder / f"{number}.wav", sound(number))
    rows = [{"audio_filepath": f"{n}.wav", "duration": 0.5, "text": f"word {n} spoken"} for n in range(COUNT)]
    said = ["`audio_filepath` is the audio (task.audio_key)", "captions"]
    return Case(str(write(folder / "manifest.json", lines(rows))), said)


@form
def json_list(folder: Path) -> Case:
    rows = [{"file_name": name, "title": caption(n)} for n, name in enumerate(pictures(folder))]
    file = write(folder / "rows.json", json.dumps(rows, indent=4))
    return Case(str(file), ["a JSON list (--task json)", "`file_name` is the image", "`title` is the answer"])


@form
def json_with_rows_inside(folder: Path) -> Case:
    rows = [{"image": name, "question": f"color {n}?", "answer": color(n)} for n, name in enumerate(pictures(folder))]
    file = write(folder / "rows.json", json.dumps({"version": "1", "data": rows}))
    return Case(str(file), ["a JSON file with rows at `data`", "questions"])


@form
def json_by_id(folder: Path) -> Case:
    rows = {f"k{n}": {"image": name, "caption": caption(n)} for n, name in enumerate(pictures(folder))}
    return Case(
        str(write(folder / "rows.json", json.dumps(rows, indent=1))), ["a JSON object of rows by id", "captions"]
    )


@form
def csv_of_labels(folder: Path) -> Case:
    rows = [["filename", "label"], *([name, color(n)] for n, name in enumerate(pictures(folder / "imgs")))]
    file = write(folder / "labels.csv", table(rows))
    return Case(str(file), ["a CSV table", "3 classes", "`label` is the answer", "imgs (--media)"])


@form
def csv_of_excel(folder: Path) -> Case:
    rows = [["Image", "Prompt", "Targets", ""], *([n, f"c{n}?", "fenêtre", ""] for n in pictures(folder))]
    file = write(folder / "rows.csv", table(rows, ";", "cp1252", "sep=;\r\n"))
    return Case(str(file), ["a CSV table (--task csv)", "questions"], ["task.lowercase=true"])


@form
def tsv(folder: Path) -> Case:
    rows = [["", "picture", "sentence"], *([str(n), name, caption(n)] for n, name in enumerate(pictures(folder)))]
    return Case(
        str(write(folder / "rows.tsv", table(rows, "\t"))), ["a TSV table", "`picture` is the image", "captions"]
    )


@form
def csv_of_numbered_captions(folder: Path) -> Case:
    rows = [["image", "caption_1", "caption_2"]]
    rows += [[name, caption(n), f"dot {n}"] for n, name in enumerate(pictures(folder))]
    return Case(str(write(folder / "rows.csv", table(rows))), ["`caption_1`, `caption_2` is the answer", "captions"])


@form
def csv_with_absolute_names(folder: Path) -> Case:
    names = pictures(folder / "far")
    rows = [["path", "text"], *([str(folder / "far" / name), caption(n)] for n, name in enumerate(names))]
    return Case(str(write(folder / "near/rows.csv", table(rows))), ["`path` is the image", "captions"])


@form
def excel(folder: Path) -> Case:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["image", "question", "answer"])
    for number, name in enumerate(pictures(folder)):
        book.active.append([name, f"how many {number}?", float(number)])
    book.save(folder / "rows.xlsx")
    return Case(str(folder / "rows.xlsx"), ["an Excel sheet (--task excel)", "`question` is the prompt"])


# Columns and shards


def parquet(file: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pyarrow.table(columns), file)
    return file


@form
def parquet_with_bytes(folder: Path) -> Case:
    columns = {
        "image": [{"bytes": picture(n), "path": None} for n in range(COUNT)],
        "question": [f"color {n}?" for n in range(COUNT)], "answer": [color(n) for n in range(COUNT)],
    }  # fmt: skip
    file = parquet(folder / "rows.parquet", columns)
    return Case(str(file), ["a parquet file (--task hf-dataset)", "`question` is the prompt", "24 images"])


@form
def parquet_with_paths(folder: Path) -> Case:
    columns = {"photo": pictures(folder / "photos"), "caption": [caption(n) for n in range(COUNT)]}
    file = parquet(folder / "rows.parquet", columns)
    return Case(str(file), ["`photo` is the image (task.image_key)", "photos (--media)"])


@form
def saved_dataset(folder: Path) -> Case:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(COLORS))})
    rows = {"img": [{"bytes": picture(n), "path": None} for n in range(COUNT)], "label": [n % 3 for n in range(COUNT)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data, "test": data.select(range(6))}).save_to_disk(str(folder / "saved"))
    return Case(str(folder / "saved"), ["a data set of `datasets`", "3 classes", "`label` is the answer"])


@form
def parquet_folder(folder: Path) -> Case:
    for split, part in (("train", range(6, COUNT)), ("validation", range(6))):
        columns = {"image": [picture(n) for n in part], "text": [caption(n) for n in part]}
        parquet(folder / f"data/{split}-00000-of-00001.parquet", columns)
    return Case(str(folder), ["a data set of `datasets`", "captions", "--validation"], split="validation")


def shard(numbers: Sequence[int], broken: bool = False) -> bytes:
    members = []
    for number in numbers:
        members += [(f"{number:05d}.jpg", picture(number, "JPEG")), (f"{number:05d}.txt", caption(number).encode())]
    return tars.archive(members[:-1] if broken else members)


@form
def tar(folder: Path) -> Case:
    file = write(folder / "00000.tar", shard(range(COUNT + 1), broken=True))
    return Case(str(file), ["WebDataset shards (--task webdataset)", "24 samples", "captions"])


@form
def tars_in_a_folder(folder: Path) -> Case:
    for number in range(3):
        write(folder / f"shards/{number:05d}.tar", shard(range(8 * number, 8 * number + 8)))
    return Case(str(folder / "shards"), ["WebDataset shards", "24 samples"])


@form
def tars_by_pattern(folder: Path) -> Case:
    for number in range(3):
        write(folder / f"{number:05d}.tar", shard(range(8 * number, 8 * number + 8)))
    return Case(str(folder / "{00000..00002}.tar"), ["WebDataset shards", "24 samples"])


@form
def tars_at_an_address(folder: Path) -> Case:
    address = f"{tars.REMOTE}/{os.getpid()}-forms.tar"
    members = []
    for number in range(COUNT):
        values = {"prompt": f"color {number}?", "targets": color(number)}
        members += [(f"{number}.png", picture(number)), (f"{number}.json", json.dumps(values).encode())]
    tars.put(address, tars.archive(members))
    return Case(address, ["WebDataset shards", "questions"])


WITH_BROKEN_ROWS = {"tar"}  # which are left out of a training; `data check` counts them as errors
REPORTED = {"classes", "classes_in_splits", "coco_folder", "json_lines", "csv_of_labels", "parquet_folder", "tar"}
