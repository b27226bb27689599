"""Reference answers stored with a run, to verify later that it still gives the same answers.

`proof.json` contains questions, hashes of their media and the exact answers. `train` uses training samples, whose media
are not copied; a shared run contains synthetic media, so it can be verified without any data.
"""

import base64
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perceptune.config.recipe import load_recipe
from perceptune.data.media.source import MediaError, content
from perceptune.data.media.synthetic import AUDIO_EVENTS, COLORS, SHAPES, draw_image, play
from perceptune.errors import UserError
from perceptune.evaluation.results import file_hash, versions
from perceptune.models.base import AdaptedModel
from perceptune.models.build import build, settle_answering
from perceptune.models.document_frequencies import write_frequencies
from perceptune.models.neighbours import Neighbours, write_neighbours
from perceptune.models.run_folder import METHOD, fingerprints, load_method, read_meta, read_recipe, restore
from perceptune.models.run_location import PROOF, local_run
from perceptune.types import Mark, Media, Medium, Message, Sample
from perceptune.utils.atomic_io import write_text
from perceptune.utils.devices import device_like, use_full_float32

ASKED = 4  # number of training samples
_QUESTIONS = ("What is this?", "Is there anything to see or hear?")


def write_reference_answers(run: Path, model: AdaptedModel, samples: Iterable[Sample]) -> None:
    """Answer samples by a model with the run's method, and store the answers in the run's folder."""
    write_text(run / PROOF, json.dumps(save_reference_answers(run, model, samples), indent=2, ensure_ascii=False))


def save_training_references(run: Path, model: AdaptedModel, samples: Iterable[Sample]) -> None:
    """Store reference answers of the saved method at the end of training; the method in memory does not change."""
    last = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    load_method(run / METHOD, model)  # the best checkpoint may be earlier than the last
    if model.frequencies is not None:
        write_frequencies(run, model.frequencies)
    if isinstance(model.neighbours, Neighbours):
        write_neighbours(run, model.neighbours)
    write_reference_answers(run, model, samples)
    model.method.load_state_dict(last)


def save_reference_answers(run: Path, model: AdaptedModel, samples: Iterable[Sample]) -> dict[str, Any]:
    """Return the content of `proof.json`. Questions are not batched, because bfloat16 answers depend on the batch."""
    rows = [
        {"id": sample.id, "prompt": sample.prompt, **_turns(sample),
         "media": sample.map_media(lambda _, medium: _described(medium)),
         "answer": model.answer([sample], batch_size=1)[0]}
        for sample in samples
    ]  # fmt: skip
    return {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type, "versions": versions(),
            "method": file_hash(run / METHOD), "samples": rows}  # fmt: skip


def synthetic_samples(modalities: Iterable[str]) -> list[Sample]:
    """Generate two small media of each modality, with a question each."""
    return [
        Sample(f"made-up-{name}-{number}", {name: (_audio if name == "audio" else _image)(number)}, question)
        for name in modalities
        for number, question in enumerate(_QUESTIONS)
    ]


def _image(number: int) -> bytes:
    """Return an image; a video encoder reads it as a video of one frame."""
    return draw_image(random.Random(number), list(COLORS)[number], SHAPES[number])


def _audio(number: int) -> bytes:
    return play(random.Random(number), list(AUDIO_EVENTS)[number], 1, seconds=0.6)


def verify_reference_answers(run: str | Path, *, trust: bool = False, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Answer the stored questions again and report differences.

    `same`: base models and the method's file are unchanged, at least one answer was compared and all are equal.
    `base`, `versions`, `dtype` and `device` contain [then, now] of what differs; `answers` contains for each sample
    `same`, `differs`, or why it could not be compared. With another base model no question is answered. `overrides` as
    in `load`. The device is of the same kind as before, if this machine has one.
    Raises `UserError` for a run without stored answers.
    """
    folder = local_run(run)
    meta = read_meta(folder)
    proof = _read(folder)
    given = ["cache.features=off", *overrides]
    place = device_like(proof.get("device"))
    use_full_float32(place)
    recipe = settle_answering(load_recipe(read_recipe(folder, trust=trust), given), place)
    model = build(recipe, dtype=proof["dtype"], ready=False)
    then, now = meta.get("base", {}), fingerprints(model)
    base = {
        part: [_short(then.get(part)), _short(found)]
        for part, found in now.items()
        if (then.get(part) or {}).get("fingerprint") != found["fingerprint"]
    }
    method = file_hash(folder / METHOD)
    answers = []
    if not base:
        restore(model, folder, place)
        answers = [_replay(model, row) for row in proof["samples"]]
    compared = [row for row in answers if row["state"] in ("same", "differs")]
    unlike = method != proof["method"]
    return {
        "same": bool(compared) and not base and not unlike and all(row["state"] == "same" for row in compared),
        "base": base,
        "method": [proof["method"][:12], method[:12]] if unlike else [],
        "versions": _differing(proof["versions"], versions()),
        "dtype": [proof["dtype"], recipe.eval.dtype] if proof["dtype"] != recipe.eval.dtype else [],
        "device": [was, place.type] if (was := proof.get("device", place.type)) != place.type else [],
        "answers": answers,
    }


def _read(folder: Path) -> dict[str, Any]:
    path = folder / PROOF
    if not path.is_file():
        raise UserError(f"`{folder}` has no stored answers: `perceptune verify {folder} --record` asks and stores some")
    try:
        proof: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not (proof["dtype"] in ("float32", "bfloat16") and proof["method"] and proof["versions"]):
            raise ValueError
        [(row["id"], row["prompt"], row["answer"], row["media"].items()) for row in proof["samples"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged: not what `perceptune train` writes") from None
    return proof


def _replay(model: AdaptedModel, row: Mapping[str, Any]) -> dict[str, Any]:
    said = {"id": row["id"], "then": row["answer"]}
    media: dict[str, Media] = {}
    for name, given in row["media"].items():
        read = []
        for one in given if isinstance(given, list) else [given]:
            try:
                data = _bytes(one)
            except (MediaError, ValueError) as error:
                return {**said, "state": f"medium missing: {error}"}
            if hashlib.sha256(data).hexdigest() != one.get("sha256"):
                return {**said, "state": f"medium changed: {one.get('path') or name}"}
            read.append(data)
        media[name] = tuple(read) if isinstance(given, list) else read[0]
    history = tuple(Message(turn["role"], turn["text"], _marks(turn)) for turn in row.get("history", ()))
    sample = Sample(row["id"], media, row["prompt"], marks=_marks(row), history=history)
    answer = model.answer([sample], batch_size=1)[0]
    return {**said, "now": answer, "state": "same" if answer == row["answer"] else "differs"}


def _turns(sample: Sample) -> dict[str, Any]:
    """Return the places of the prompt's media and the earlier turns, if there are any."""
    history = [{"role": turn.role, "text": turn.text, **_places(turn.marks)} for turn in sample.history]
    return {**_places(sample.marks), **({"history": history} if history else {})}


def _places(marks: Sequence[Mark]) -> dict[str, Any]:
    return {"marks": [[mark.at, mark.modality] for mark in marks]} if marks else {}


def _marks(stored: Mapping[str, Any]) -> tuple[Mark, ...]:
    return tuple(Mark(int(at), str(modality)) for at, modality in stored.get("marks", ()))


def _described(medium: Medium) -> dict[str, str]:
    data = content(medium)
    digest = {"sha256": hashlib.sha256(data).hexdigest()}
    if isinstance(medium, bytes):
        return {**digest, "data": base64.b64encode(data).decode()}
    return {**digest, "path": str(medium.absolute() if isinstance(medium, Path) else medium)}


def _bytes(medium: Mapping[str, str]) -> bytes:
    if "data" in medium:
        return base64.b64decode(medium["data"], validate=True)
    return content(Path(medium.get("path", "")))


def _short(part: Mapping[str, str] | None) -> str:
    return "nothing" if part is None else f"{part.get('id')} ({str(part.get('fingerprint'))[:12]})"


def _differing(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: [then.get(name, "none"), value] for name, value in now.items() if then.get(name) != value}
