"""Check whether a run still gives the answers stored with it.

Examples:
  perceptune verify runs/mine
  perceptune verify hf://me/my-run lm.id=models/my-lm
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perceptune.cli.output import print_found
from perceptune.cli.parsing import Namespace, Parser
from perceptune.utils.terminal import printable


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="a folder, a zip file, or hf://USER/NAME")
    parser.add_overrides("locations of base models, such as lm.id=FOLDER")
    parser.add_argument("--record", action="store_true", help="answer questions about synthetic media and store that")
    parser.add_json()
    parser.add_trust()


def run(options: Namespace) -> int:
    """Compare the answers; return 1 if one differs."""
    from perceptune.evaluation.reference_answers import verify_reference_answers as ask

    if options.record:
        _record(options)
        return 0
    found = ask(options.run, trust=options.trust, overrides=options.overrides)
    print_found(found, _lines(found), as_json=options.json)
    return 0 if found["same"] else 1


def _record(options: Namespace) -> None:
    from perceptune.evaluation.reference_answers import synthetic_samples, write_reference_answers
    from perceptune.models.run_folder import load

    model = load(options.run, trust=options.trust, overrides=["cache.features=off", *options.overrides])
    samples = synthetic_samples(model.stores)
    write_reference_answers(Path(options.run), model, samples)
    print(f"{len(samples)} answers stored")


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
        yield f"{'ok  ' if row['state'] == 'same' else '!!  '} {printable(row['id'])}: {row['state']}{differs}"
    yield "it answers as it did" if found["same"] else "could not reproduce the reference answers"
