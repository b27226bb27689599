"""Train a recipe, or a run described by options alone.

Examples:
  perceptune train small --data my.jsonl --run runs/mine
  perceptune train --data my.jsonl --lm facebook/opt-125m --method epalm-lin train.steps=500
  perceptune train --resume --run runs/mine
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser
from perceptune.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("recipe", nargs="?", help="a recipe file or the name of a shipped recipe")
    parser.add_overrides("recipe keys, such as train.steps=500", beside="recipe")
    parser.add_argument("--lm", help="`default`, a Hugging Face id or a folder")
    parser.add_argument("--encoder", help="image encoder: `default`, a Hugging Face id or a folder")
    parser.add_argument("--method", help="a name of `perceptune list methods`")
    parser.add_argument("--task", help="a name of `perceptune list tasks`")
    parser.add_argument("--data", help="training data: a file with one JSON object per line, or what --task reads")
    parser.add_argument("--validation", help="file to evaluate on, in the format of --data")
    parser.add_fetch_media()
    parser.add_argument("--run", help="run folder (default: runs/<recipe name>)")
    parser.add_argument("--resume", action="store_true", help="resume the run exactly where it stopped")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="train for M minutes: timed steps determine how many"
    )
    parser.add_join_timeout()
    parser.add_trust()


def run(options: Namespace) -> int:
    """Train; return 130 if interrupted."""
    from perceptune.training.trainer import train as run_training

    recipe, overrides = training_recipe(options)
    result = run_training(
        recipe, options.run, overrides=overrides, resume=options.resume, trust=options.trust,
        join_timeout=options.join_timeout, minutes=options.minutes,
    )  # fmt: skip
    if result.interrupted:
        out.print(f"stopped after step {result.steps}, everything is saved; resume with:\n"
                  f"  perceptune train --resume --run {result.run}")  # fmt: skip
        return 130
    best = "" if result.best is None else f", best {result.best:.4f}"
    took = f"{result.seconds:.0f} s"
    if result.minutes is not None:
        took = f"{result.minutes:.1f} minutes of {options.minutes:g}"
    out.print(f"trained {result.steps} steps ({result.samples} samples) in {took}{best}: {result.run}")
    if not print_first_look(result.run, trust=options.trust):
        out.print(f"next:  perceptune eval {result.run}")
    return 0


def print_first_look(run: Path, *, trust: bool) -> bool:
    """Print the report of a run that was evaluated after training (`eval.at_end`); return whether it was."""
    from perceptune.evaluation.first_look import first_look, report_lines
    from perceptune.models.run_folder import read_recipe
    from perceptune.utils.run_log import is_main_process

    if not read_recipe(run, trust=trust).eval.at_end:
        return False
    if is_main_process():
        out.print("\n".join(report_lines(first_look(run, trust=trust))), markup=False)
    return True


def training_recipe(options: Namespace) -> tuple[Any, Any]:
    """Return the named recipe, or one made of the flags alone."""
    flags = [("lm.id", options.lm), ("encoders.image.id", options.encoder), ("method.name", options.method),
             ("task.fetch_media", options.fetch_media or None)]  # fmt: skip
    overrides = [*(pair for pair in (*flags, *_data_flags(options)) if pair[1] is not None), *options.overrides]
    if options.recipe:
        return options.recipe, overrides
    if options.resume and options.run:
        return None, overrides  # the run's own recipe
    if not overrides:
        raise UserError("nothing to train: name a recipe, or at least --data FILE or --task NAME")
    return {"name": options.task or (Path(options.data).stem if options.data else "run")}, overrides


def _data_flags(options: Namespace) -> Sequence[tuple[str, str | None]]:
    """Return recipe keys of --task, --data and --validation. The reader determines the keys of --data."""
    if not (options.data or options.validation):
        return [("task.name", options.task)]
    from perceptune.data.build_task import data_keys, validation_keys

    named = _named_task(options)
    name = named or "jsonl"
    keys = data_keys(name, options.data) if options.data else {}
    if options.validation:
        keys |= validation_keys(name, options.validation)
    return [("task.name", options.task if named else name), *((f"task.{key}", value) for key, value in keys.items())]


def _named_task(options: Namespace) -> str | None:
    """Return the task named on the command line, else that of the recipe or of the run to resume."""
    from perceptune.config.recipe import find_recipe, read_yaml
    from perceptune.config.substitution import part_names
    from perceptune.models.run_location import RECIPE

    given = [word.partition("=")[2] for word in options.overrides if word.startswith(("task=", "task.name="))]
    if given or options.task:
        return given[-1] if given else options.task
    own = Path(options.run) / RECIPE if options.run and options.resume else None
    source = find_recipe(options.recipe) if options.recipe else own
    return part_names(read_yaml(source))["task"] if source is not None and source.is_file() else None
