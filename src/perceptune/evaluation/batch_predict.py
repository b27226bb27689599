"""Batch prediction: a JSONL of media and prompts, or a folder of media files, becomes a JSONL of answers.

Rows are read, answered and appended in batches. Batches begin at fixed rows, so a run that resumes after a kill forms
the same batches as an uninterrupted one: the same answers, every row once.
"""

import contextlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from perceptune.data.answer_cleaning import AnswerCleaning
from perceptune.data.conversations import answers_of, text_row
from perceptune.data.lazy_rows import LazyRow
from perceptune.data.media.animation import moves
from perceptune.data.media.file_types import HEAD, JSON_TEXT, kind_of
from perceptune.data.media.remote_media import RemoteMedia
from perceptune.data.media.source import content, label
from perceptune.data.media.suffixes import EITHER, MEDIA, PassedOver, modality_of, suffix_of, walk
from perceptune.data.records import parse
from perceptune.data.storage import local_path
from perceptune.data.tasks.base import id_of, media_of, place_files, plain
from perceptune.data.tasks.jsonl import record_of
from perceptune.errors import UserError, disk_errors
from perceptune.evaluation import prediction_rows
from perceptune.evaluation.results import answering_info, model_fingerprints
from perceptune.models.base import AdaptedModel
from perceptune.models.ensemble import ensemble_name, load_answering
from perceptune.models.run_folder import cleaning_of, make_writable
from perceptune.models.run_location import is_address, local_run
from perceptune.types import Sample
from perceptune.utils.atomic_io import write_json
from perceptune.utils.distributed import World
from perceptune.utils.locking import locked
from perceptune.utils.paths import absolute, local_name
from perceptune.utils.run_log import progress

_ROWS = ("jsonl", "json", "ndjson")  # suffixes of JSON lines, whose errors are those of their rows
META_SUFFIX = ".meta.json"


@dataclass(frozen=True)
class Predicted:
    """The result of `predict`."""

    out: Path
    rows: int
    errors: int  # rows with an `error` instead of an answer
    resumed_at: int  # rows that existed already


@dataclass(frozen=True)
class _Request:
    """A row of the input: a sample, or the reason why there is none."""

    id: str
    sample: Sample | None
    error: str = ""


def predict(
    run: str | Path, source: str | Path, out: str | Path | None = None, *, prompt: str | None = None,
    batch_size: int | None = None, trust: bool = False, overrides: Sequence[str] = (),
    join_timeout: float | None = None, fetch_media: bool = False, ensemble: Sequence[str | Path] = (),
) -> Predicted:  # fmt: skip
    """Append an answer to every row of `source` to the JSONL file `out`; existing rows are kept.

    `prompt` is used for rows without one. Features are not cached on disk unless `overrides` set `cache.features=disk`.
    `fetch_media` fetches media at http(s) addresses; the runs in `ensemble` answer together with `run`. `join_timeout`
    as in `train`. Raises `UserError` if `out` contains rows of another input, model, prompt or decoding, or if another
    process is writing it.
    """
    if is_address(run) and out is None:
        raise UserError(f"{run}: answers of a run on a hub need a file: name one (`out`, --out)")
    place = local_name(str(source))
    if modality_of(place) is not None:
        local_path(place, "FILE|DIR")  # one medium at an address
    source, run = Path(place), local_run(run)
    together = f"_{ensemble_name(ensemble)}" if ensemble else ""
    target = run / f"predicted_{source.stem}{together}.jsonl" if out is None else Path(out)
    world = World(join_timeout)
    with world.synced_errors():
        kept = [] if any(word.startswith("cache.features=") for word in overrides) else ["cache.features=off"]
        model = load_answering(run, ensemble, trust=trust, overrides=[*kept, *overrides], device=world.loading_device,
                               ready=world.size == 1)  # fmt: skip
        if world.is_sharded:
            raise UserError("accelerate: `predict` gives every process the whole LM: leave out FSDP")
        passed = PassedOver()
        if prediction_rows.needs_recognition(place):
            rows = _recognized(place, prompt, model, fetch_media=fetch_media)
        else:
            rows = _rows(source, prompt, model, passed, RemoteMedia() if fetch_media else None)
        cleaning = cleaning_of(model)
    if world.size > 1:
        model.place(world)
        model.setup()
    described = {"source": absolute(place), "prompt": prompt, "decoding": model.recipe.decode.model_dump(),
                 "text": model.recipe.text.model_dump(), "models": model_fingerprints(model, run),
                 "portion": batch_size or model.recipe.eval.batch_size, **answering_info(model)}  # fmt: skip
    with contextlib.ExitStack() as held:
        done, size = world.run_on_main(lambda: _prepared(target, described, held))
        answered = _answer_all(model, cleaning, rows, target, source, world, done, size)
    if passed and world.rank == 0:
        print(f"{source}: {passed}", file=sys.stderr)
    return answered


def _answer_all(
    model: AdaptedModel, cleaning: AnswerCleaning, rows: Iterator[_Request], target: Path, source: Path,
    world: World, done: int, size: int,
) -> Predicted:  # fmt: skip
    """Answer the rows from number `done`, in batches of `size` per process."""
    earlier, number, errors = _written(target), 0, 0
    with progress(0, "predict", done) as bar:
        while portions := list(islice(rows, size * world.size)):
            start, number = number, number + len(portions)
            if start < done:
                with world.synced_errors():
                    errors += _require_same(target, portions[: done - start], earlier)
            if number <= done:
                continue
            with world.synced_errors():
                lines = _lines(model, cleaning, portions[world.rank * size :][:size])
            new = [line for part in world.all_gather(lines) for line in part][max(done - start, 0) :]
            errors += sum(broken for _, broken in new)
            world.run_on_main(lambda new=new: _append(target, [line for line, _ in new]))  # type: ignore[misc]
            bar.advance(len(new))
    if number < done:
        raise UserError(f"{target} holds {done} rows, but {source} has {number}: it has changed; name another --out")
    return Predicted(target, number, errors, done)


def _recognized(place: str, prompt: str | None, model: AdaptedModel, *, fetch_media: bool) -> Iterator[_Request]:
    """Yield the rows of data in any other form."""
    for number, found in prediction_rows.recognized_rows(place, prompt, model.recipe, fetch_media=fetch_media):
        if isinstance(found, UserError):
            yield _Request(f"row-{number:06d}", None, str(found))
        else:
            yield from (_Request(one.id, one) for one in answers_of(found))


def _rows(
    source: Path, prompt: str | None, model: AdaptedModel, passed: PassedOver, remote: RemoteMedia | None
) -> Iterator[_Request]:
    """Yield the rows of the input; skipped files of a folder are counted. Raises `UserError` if there is none."""
    asks = "{prompt}" in model.recipe.text.template
    prompt = prediction_rows.run_settings(model.recipe).get("prompt") if prompt is None else prompt
    is_folder, known = source.is_dir(), [*model.stores]
    if not is_folder and _modality_of(source, known) is None:
        file = plain(source)
        _require_rows(source, file, known)
        read = partial(_records, source, file, prompt, asks, remote)
        if remote is not None:
            remote.fetch_for(read, str(source), None)
        return read()
    if asks and prompt is None:
        raise UserError(f"{source}: files hold no question, and this run's template wants one: give --prompt")
    files = _files(source, known, passed) if is_folder else iter([(source, str(_modality_of(source, known)))])
    first = next(files, None)
    if first is None:
        every = [suffix for suffixes in MEDIA.values() for suffix in suffixes]
        suffixes = ", ".join(f".{suffix}" for suffix in every if modality_of(f"x.{suffix}", known))
        raise UserError(f"{source} holds no file that ends in {suffixes}{f' ({passed})' if passed else ''}")
    folder = source if is_folder else source.parent
    return (
        _Request(name, Sample(name, {modality: file}, prompt or ""))
        for file, modality in chain([first], files)
        for name in [file.relative_to(folder).as_posix()]
    )


def _require_rows(source: Path, file: Path, known: Collection[str]) -> None:
    """Raise `UserError` with the type of a file, of which `file` is the plain one, that cannot be JSON lines."""
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    kind, name = kind_of(head), source.with_suffix("") if suffix_of(source) == "gz" else source
    is_text = kind.is_text if kind else b"\0" not in head
    if head.strip() and not (is_text and (suffix_of(name) in _ROWS or (kind and kind.name == JSON_TEXT))):
        found = kind.name if kind else "a text" if is_text else "a binary file of an unknown type"
        raise UserError(f"{source} is {found}: neither JSON lines nor, by its name, a medium that this run takes "
                        f"({', '.join(known)})")  # fmt: skip


def _files(folder: Path, known: Collection[str], passed: PassedOver) -> Iterator[tuple[Path, str]]:
    """Yield media files with their modality in a fixed order, holding the names of one folder at a time."""
    for file in walk(folder, passed):
        modality = _modality_of(file, known)
        if modality is None:
            passed.add(file.name)
        else:
            yield file, modality


def _modality_of(file: Path, known: Collection[str]) -> str | None:
    """Return the modality by a file's name; a GIF is a video only if it is animated, for a run with both."""
    modality = modality_of(file, known)
    if suffix_of(file) == EITHER and {"image", "video"} <= {*known} and not moves(file):
        return "image"
    return modality


def _records(
    source: Path, file: Path, prompt: str | None, asks: bool, remote: RemoteMedia | None
) -> Iterator[_Request]:
    with file.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            name = f"row-{number:06d}"
            try:
                record = record_of(LazyRow(0, number, text), source)
                if record is None:
                    continue
                name = id_of(record, name)
                if prompt is not None and record.values.get("prompt") is None:
                    record.values["prompt"] = prompt
                targets = record.targets(["targets"], str.strip, needed=False, numbers=True)
                question = record.prompt("prompt", allow_empty=not asks)
                media = media_of(record, source.parent, remote=remote)
                placed = place_files(record, question, media, allow_empty=not asks)
                sample = Sample(name, placed.arrange(media), placed.text, targets, record.meta(), placed.marks)
                yield _Request(name, sample)
            except UserError as error:
                yield _Request(name, None, str(error))


def _lines(model: AdaptedModel, cleaning: AnswerCleaning, portion: Sequence[_Request]) -> list[tuple[str, bool]]:
    """Return a line for each row, and whether it contains an error."""
    problems = {place: asked.error for place, asked in enumerate(portion) if asked.sample is None}
    samples = {place: asked.sample for place, asked in enumerate(portion) if asked.sample is not None}
    try:
        raw = prediction_rows.answered(model, [*samples.values()])
    except UserError:  # raised by one sample for all: find the unusable ones and answer the others
        problems |= {place: said for place, sample in samples.items() if (said := _problem(model, sample))}
        samples = {place: sample for place, sample in samples.items() if place not in problems}
        raw = prediction_rows.answered(model, [*samples.values()])
    answers = dict(zip(samples, raw, strict=True))
    lines = []
    for place, asked in enumerate(portion):
        row: dict[str, Any] = {"id": asked.id}
        if asked.sample is not None:
            row |= {"media": asked.sample.map_media(lambda _, medium: label(medium)), **text_row(asked.sample)}
        if place in problems:
            row["error"] = problems[place]
        else:
            text = answers[place]
            row |= {"answer": cleaning(text), "raw": text}
        if asked.sample is not None and asked.sample.targets:
            row["targets"] = list(asked.sample.targets)
        if asked.sample is not None and asked.sample.meta:
            row["meta"] = dict(asked.sample.meta)
        lines.append((json.dumps(row, ensure_ascii=False) + "\n", place in problems))
    return lines


def _problem(model: AdaptedModel, sample: Sample) -> str:
    """Return why a sample cannot be answered; empty if it can."""
    try:
        model.check_modalities([sample])
        prediction_rows.require_choices(model, sample)
        model.text.prompt_ids(sample)
        for modality, medium in sample.iter_media():
            model.stores[modality].encoder.load(content(medium), label(medium, modality))
    except UserError as error:
        return str(error)
    return ""


def _prepared(target: Path, described: Mapping[str, Any], held: contextlib.ExitStack) -> tuple[int, int]:
    """Return the number of complete rows in the file and the batch size; truncate an incomplete last row.

    `held` receives a lock, because two processes that resume one file would both write all missing rows.
    """
    about = target.with_name(target.name + META_SUFFIX)
    make_writable(target.parent, "name another file by --out")
    busy = f"{target} is being written by another `predict`: wait for its end, or name another --out"
    held.enter_context(locked(target.with_name(f".{target.name}.lock"), busy=busy))
    if not target.exists() or target.stat().st_size == 0:
        write_json(about, described)
        return 0, described["portion"]
    if not about.is_file():
        raise UserError(f"{target} exists and was not written by `predict` ({about.name} is missing): name another")
    before = json.loads(about.read_text(encoding="utf-8"))
    for key in dict.fromkeys([*described, *before]):
        if key != "portion" and before.get(key) != json.loads(json.dumps(described.get(key))):
            raise UserError(f"{target} was begun with another `{key}` (see {about.name}): name another --out")
    count, end = 0, 0
    with target.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, end = count + 1, end + len(line)
        file.truncate(end)
    return count, before["portion"]


def _written(target: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that the file contains already."""
    with target.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield parse(line, f"{target}, line {number}", "one object a line") or {}


def _require_same(target: Path, portion: Sequence[_Request], earlier: Iterator[dict[str, Any]]) -> int:
    """Raise `UserError` if the next rows of the file do not answer these; return the number of errors in them."""
    errors = 0
    for asked in portion:
        row = next(earlier)
        if row.get("id") != asked.id:
            raise UserError(f"{target} holds an answer to `{row.get('id')}` where `{asked.id}` is asked: "
                            "the input has changed; name another --out")  # fmt: skip
        errors += "error" in row
    return errors


def _append(target: Path, lines: Sequence[str]) -> None:
    with disk_errors(target), target.open("ab") as file:
        file.write("".join(lines).encode(errors="backslashreplace"))  # escapes bytes that are not UTF-8 as JSON does
