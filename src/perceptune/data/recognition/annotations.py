"""Annotation files of published sets: COCO's captions, Karpathy's splits, VQA's questions, GQA."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.data.recognition.form import Form
from perceptune.data.recognition.media_folder import find_folder
from perceptune.data.recognition.rows import Row, Rows, json_rows_of
from perceptune.errors import UserError

_VALIDATION = "validation"
_VQA_TEMPLATES = ("{subset}/{name}.jpg", "{name}.jpg", "{image_id:012d}.jpg", "{image_id}.jpg", "{image_id}.png")


def annotation_form(path: Path, found: Rows, media: str | None, split: str) -> Form | None:
    """Return the form of a published annotation file; None for any other file.

    Raises `UserError` for annotations without text, and for one of two files whose other one is not beside it.
    """
    images, notes = found.lists.get("images", []), found.lists.get("annotations", [])
    if "questions" in found.lists or (notes and "question_id" in notes[0]):
        return _vqa(path, found, media, split)
    if images and "sentences" in images[0]:
        return _karpathy(path, images, media)
    if images and notes and "image_id" in notes[0]:
        if not any("caption" in row for row in notes):
            raise UserError(
                f"{path}: COCO's annotations without captions: "
                "the captions are in another file of the set, such as captions_train2017.json"
            )
        folder = find_folder([str(row.get("file_name")) for row in images], path, media)
        options = {"format": "official", "template": "{file_name}", **_only(path, split), **_located(path, folder)}
        return Form("COCO captions", "coco-captions", options, answers="caption", splits=(split,))
    rows = found.rows
    if rows and all("question" in row and "imageId" in row for row in rows):
        names, template = _named(path, [str(row["imageId"]) for row in rows], media)
        options = {"format": "official", "template": template, **_only(path, split), **_located(path, names)}
        return Form("GQA questions", "gqa", options, answers="answer", splits=(split,))
    return None


def _karpathy(path: Path, images: Sequence[Row], media: str | None) -> Form:
    """Return the form of a file with Karpathy's splits, which names its data set."""
    has_path = "filepath" in images[0]
    names = ["/".join([*([str(row["filepath"])] if has_path else []), str(row["filename"])]) for row in images]
    reader = "coco-captions" if has_path else "flickr8k"
    options: dict[str, Any] = {"format": "karpathy", "annotations": {
        split: path.name for split in ("train", _VALIDATION, "test")
    }}  # fmt: skip
    options |= _located(path, find_folder(names, path, media))
    if not has_path:
        options["template"] = "{name}"
    return Form("captions in Karpathy's splits", reader, options, answers="raw", splits=("train", _VALIDATION, "test"))


def _vqa(path: Path, found: Rows, media: str | None, split: str) -> Form:
    """Return the form of VQA's questions with the annotations beside them."""
    is_questions = "questions" in found.lists
    other = _partner(path, is_questions=is_questions)
    if other is None and (split == "train" or not is_questions):
        missing = "annotations" if is_questions else "questions"
        raise UserError(
            f"{path}: VQA's {'questions' if is_questions else 'annotations'} without its {missing}: put the file of "
            f"{missing} beside it, or name both by task.annotations.{split}=[A.json, B.json] and --task vqa-v2"
        )
    questions = (found if is_questions else json_rows_of(other or path)) or found
    rows = questions.lists["questions"]
    files = [path.name, *([other.name] if other else [])]
    folder, template = _vqa_media(path, rows, questions.texts.get("data_subtype", ""), media)
    options = {"annotations": {split: files, **_without(split)}, "template": template, **_located(path, folder)}
    return Form("VQA questions", "vqa-v2", options, answers="answers", splits=(split,))


def _partner(path: Path, *, is_questions: bool) -> Path | None:
    """Return the file of annotations to a file of questions beside it, or the reverse."""
    wanted, own = ("annotations", "questions") if is_questions else ("questions", "annotations")
    # OpenEnded_... is only in the names of questions.
    stem = path.name.replace("OpenEnded_", "").replace(own, "")
    for other in sorted(path.absolute().parent.glob("*.json*")):
        if wanted in other.name and other.name.replace("OpenEnded_", "").replace(wanted, "") == stem:
            return other
    return None


def _vqa_media(path: Path, rows: Sequence[Row], subset: str, media: str | None) -> tuple[Path | None, str]:
    numbers = [int(row["image_id"]) for row in rows if str(row.get("image_id")).isdecimal()]
    errors: list[UserError] = []
    for template in _VQA_TEMPLATES:
        names = [template.format(subset=subset, name=f"COCO_{subset}_{n:012d}", image_id=n) for n in numbers]
        try:
            folder = find_folder(names, path, media)
        except UserError as error:
            errors.append(error)
            continue
        if media is None or not names or (Path(media) / names[0]).is_file():
            return folder, template
    raise errors[0] if errors else UserError(f"{path}: no image of it lies in {media}")


def _named(path: Path, stems: Sequence[str], media: str | None) -> tuple[Path | None, str]:
    """Return the folder of images named by their ids, and the template of their names."""
    errors = []
    for suffix in ("jpg", "png", "jpeg"):
        try:
            return find_folder([f"{stem}.{suffix}" for stem in stems], path, media), f"{{image_id}}.{suffix}"
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _located(path: Path, folder: Path | None) -> dict[str, str]:
    """Return the reader's folder of annotations, and that of its media if it is another one."""
    own = path.absolute().parent
    return {"dir": str(own), **({"media": str(folder.absolute())} if folder is not None and folder != own else {})}


def _only(path: Path, split: str) -> dict[str, Any]:
    return {"annotations": {split: path.name, **_without(split)}}


def _without(split: str) -> dict[str, list[str]]:
    """Return the published splits that the data set lacks, as empty lists."""
    return {other: [] for other in ("train", _VALIDATION, "test", "testdev") if other != split}
