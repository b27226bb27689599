"""Data sets as folders, published annotation files and conversations, each in an awkward variant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clips
from formparts import COUNT, Case, caption, color, form, lines, picture, pictures, sound, table, write

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
