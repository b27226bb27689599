"""`export`, `push` and `verify`: a run for others, and whether it still answers as it did."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def add_share(commands: Any) -> list[argparse.ArgumentParser]:
    """The commands with their options."""
    export = commands.add_parser("export", help="write a run as one zip file, with what is needed to load it")
    export.add_argument("run")
    export.add_argument("file", metavar="FILE.zip")

    push = commands.add_parser("push", help="send a run to a Hugging Face hub")
    push.add_argument("run")
    push.add_argument("name", metavar="USER/NAME")
    push.add_argument("--private", action="store_true", help="make the repository private if it does not exist yet")

    verify = commands.add_parser("verify", help="find out whether a run still answers as it did when it was saved")
    verify.add_argument("run", help="a folder, a zip file, or hf://USER/NAME")
    verify.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="where base models lie, such as lm.id=FOLDER")
    verify.add_argument("--record", action="store_true", help="ask about made-up media, and store the answers")
    verify.add_argument("--json", action="store_true")
    return [export, push, verify]


def export(options: argparse.Namespace) -> int:
    """Writes a zip file."""
    from perceptune.models.run_location import local_run
    from perceptune.tools.export.bundle import export as write

    made = write(local_run(options.run), Path(options.file), trust=options.trust)
    print(f"{Path(options.file).stat().st_size:,} bytes: {options.file}")
    _tell_local(made.local)
    return 0


def push(options: argparse.Namespace) -> int:
    """Sends it to a hub."""
    from perceptune.models.run_location import local_run
    from perceptune.tools.export.hub import push as send

    address, local = send(local_run(options.run), options.name, private=options.private, trust=options.trust)
    print(f"{address}\nnext:  perceptune verify hf://{options.name}")
    _tell_local(local)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Asks again. 1 where something differs."""
    from perceptune.evaluation.reference_answers import verify as ask

    if options.record:
        return _record(options)
    found = ask(options.run, trust=options.trust, overrides=options.overrides)
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 0 if found["same"] else 1


def _record(options: argparse.Namespace) -> int:
    from perceptune.evaluation.reference_answers import synthetic_samples, write_reference_answers
    from perceptune.models.run_folder import load

    model = load(options.run, trust=options.trust, overrides=["cache.features=off", *options.overrides])
    samples = synthetic_samples(model.stores)
    write_reference_answers(Path(options.run), model, samples)
    print(f"{len(samples)} answers stored")
    return 0


def _lines(found: dict[str, Any]) -> Iterator[str]:
    for what, (then, now) in found["base"].items():
        yield f"!!   {what}: it was trained on {then}, here is {now}; nothing was asked"
    if found["method"]:
        then, now = found["method"]
        yield f"!!   method.safetensors: the answers are those of another file (sha256 {then}, now {now})"
    for name, (then, now) in found["versions"].items():
        yield f"note {name}: {then} then, {now} now"
    if found["dtype"]:
        then, now = found["dtype"]
        yield f"note dtype: the answers were given in {then}, asked again in it; `eval.dtype` is {now}"
    if found["device"]:
        yield "note device: the answers were given on {}, asked again on {}: rounding differs".format(*found["device"])
    for row in found["answers"]:
        differs = f": {row['then']!r} then, {row['now']!r} now" if row["state"] == "differs" else ""
        yield f"{'ok  ' if row['state'] == 'same' else '!!  '} {_printable(row['id'])}: {row['state']}{differs}"
    yield "it answers as it did" if found["same"] else "it was not shown to answer as it did"


def _printable(text: str) -> str:
    """Ids come from strangers: what would steer the terminal is written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _tell_local(models: Sequence[str]) -> None:
    for name in models:
        print(f"note: the base model `{name}` lies on this machine alone: who loads the run elsewhere needs a copy of "
              "it, and says where by lm.id=... or encoders.MODALITY.id=...")  # fmt: skip
