"""Data sets as rows, columns and shards, each in an awkward variant."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tars
from formparts import COLORS, COUNT, Case, caption, color, form, lines, picture, pictures, sound, table, write

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
