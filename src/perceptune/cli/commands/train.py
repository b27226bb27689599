"""Train a recipe, or a run described by options alone.

Examples:
  perceptune train --data my-images --lm facebook/opt-125m --minutes 30
  perceptune train small --data my.jsonl --run runs/mine
  perceptune train --resume --run runs/mine
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser, words_of
from perceptune.errors import UserError
from perceptune.utils.terminal import print_note

GENERIC = "jsonl"  # reader of recipes for the user's own data, whatever its form


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("recipe", nargs="?", help="a recipe file or the name of a shipped recipe")
    parser.add_overrides("recipe keys, such as train.steps=500", beside="recipe")
    parser.add_argument("--lm", help="`default`, a Hugging Face id or a folder")
    parser.add_argument("--encoder", help="encoder of the data's media: `default`, a Hugging Face id or a folder")
    parser.add_argument("--method", help="a name of `perceptune list methods`")
    parser.add_argument("--task", help="a name of `perceptune list tasks`")
    parser.add_argument(
        "--data", metavar="PATH", help="training data in any form: it is recognised, see docs/any_data.md"
    )
    parser.add_media()
    parser.add_fetch_media()
    parser.add_argument("--validation", metavar="PATH", help="data to evaluate on, in the form of --data")
    told = "keep together, when media are held out: a regular expression in file names, or a column"
    parser.add_argument("--group-by", metavar="REGEX|COLUMN", help=told)
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
    """Return the named recipe, or one for the data alone, and the keys that the flags set."""
    data = None if options.resume else _recognized(options)
    modality = "image" if data is None else data.found.modality
    pairs = [("lm.id", options.lm), (f"encoders.{modality}.id", options.encoder), ("method.name", options.method),
             ("task.fetch_media", options.fetch_media or None)]  # fmt: skip
    flags = [pair for pair in pairs if pair[1] is not None]
    is_alone = data is not None and not options.recipe
    if options.group_by is not None and not is_alone:
        raise UserError("--group-by goes with --data and no recipe: with one, set train.hold_out.group_by")
    if is_alone:
        return _recipe_of(options, data), options.overrides
    overrides = [*flags, *_data_flags(options, data), *options.overrides]
    if options.recipe or data is not None:
        return options.recipe, overrides
    if options.resume and options.run:
        return None, overrides  # the run's own recipe
    if not overrides:
        raise UserError("nothing to train: name a recipe, or at least --data PATH or --task NAME")
    return {"name": options.task or "run"}, overrides


def _recipe_of(options: Namespace, data: Any) -> dict[str, Any]:
    """Return the recipe for the data alone, and print what it was taken for."""
    from perceptune.training.default_recipe import default_recipe, split_line

    pairs = (word.split("=", 1) for word in options.overrides)
    values = {key: value for key, value in pairs if not value.startswith("{")}  # keys count before flags
    encoder = f"encoders.{data.found.modality}"
    models = {"lm": ("lm", "lm.id"), "method": ("method", "method.name"), "encoder": (encoder, f"{encoder}.id")}
    named = {
        name: next((values[key] for key in keys if key in values), getattr(options, name))
        for name, keys in models.items()
    }
    recipe = default_recipe(data, group_by=options.group_by, words=options.overrides, **named)
    print_note(f"{data.line}; {split_line(recipe, data)}")
    return {"name": Path(options.data).stem or "run", **recipe}


def _recognized(options: Namespace) -> Any:
    """Return the recognised data of --data; None without it, and if a recipe's own reader is that of one data set."""
    if not options.data:
        return None
    from perceptune.config.recipe import find_recipe, read_yaml
    from perceptune.config.substitution import OF_ANY_DATA
    from perceptune.data.recognition.task_keys import recognize_task

    reader, settings = _named_task(options), {}
    is_named = options.task or any(word.startswith(("task=", "task.name=")) for word in options.overrides)
    if options.recipe:
        if is_named or reader not in (GENERIC, None):
            return None
        task = read_yaml(find_recipe(options.recipe)).get("task")
        settings = {key: task[key] for key in OF_ANY_DATA if isinstance(task, dict) and key in task}
    words = [word for word in words_of(options) if not word.startswith(("task=", "task.name="))]
    data = recognize_task(options.data, media=options.media, reader=reader if is_named else None, words=words,
                          validation=options.validation, settings=settings)  # fmt: skip
    if data.doubt is not None:
        raise data.doubt
    return data


def _data_flags(options: Namespace, data: Any) -> Sequence[tuple[str, Any]]:
    """Return recipe keys of --task, --data and --validation. The reader determines the keys of --data."""
    if data is not None:
        print_note(data.line)
        keys = {key: value for key, value in data.task.items() if key != "name"}
        return [("task.name", data.form.reader), *((f"task.{key}", value) for key, value in keys.items())]
    if not (options.data or options.validation):
        return [] if options.task is None else [("task.name", options.task)]
    from perceptune.data.build_task import validation_keys
    from perceptune.data.recognition.task_keys import find_reader

    name, keys = _named_task(options) or GENERIC, {}
    if options.data:
        form, given = find_reader(options.data, reader=name, media=options.media)
        keys = form.options | given
    if options.validation:
        keys |= validation_keys(name, options.validation)
    return [("task.name", options.task or name), *((f"task.{key}", value) for key, value in keys.items())]


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
