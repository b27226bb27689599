"""The command line: parses, calls the library, turns the user's mistakes into one line and exit code 2."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence

from perceptune._version import __version__
from perceptune.cli.blip import add_commands
from perceptune.cli.data import add_data
from perceptune.cli.imports import add_imports
from perceptune.cli.parsing import Parser
from perceptune.cli.report import add_report
from perceptune.cli.serve import add_serve
from perceptune.cli.share import add_share
from perceptune.errors import NonMainProcessError, UserError

KINDS = ("methods", "qformer-methods", "encoders", "tasks", "metrics", "recipes")


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = Parser(
        prog="perceptune",
        description="Eyes and ears for a frozen language model, training under 1 % of the parameters.",
    )
    top.add_argument("--version", action="version", version=f"perceptune {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train and evaluate on real models and data, and draw what came out")
    demo.add_argument("--run", default="runs/demo", help="run folder (default: %(default)s)")
    demo.add_argument("--smoke", action="store_true", help="run the demo cut to about two minutes")

    train = commands.add_parser("train", help="train a recipe, or from flags alone")
    train.add_argument("recipe", nargs="?", help="a recipe file or the name of a shipped recipe")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, such as train.steps=500")
    train.add_argument("--lm", help="`default`, a Hugging Face id or a folder")
    train.add_argument("--encoder", help="image encoder: `default`, a Hugging Face id or a folder")
    train.add_argument("--method", help="see `perceptune list methods`")
    train.add_argument("--task", help="see `perceptune list tasks`")
    train.add_argument("--data", help="your training data: a file with one JSON object a line, or what --task reads")
    train.add_argument("--validation", help="file to evaluate on, of the same kind")
    train.add_argument("--run", help="run folder (default: runs/<recipe name>)")
    train.add_argument("--resume", action="store_true", help="go on where the run stopped, exactly")

    evaluate = commands.add_parser("eval", help="evaluate a run by generating answers")
    evaluate.add_argument("run")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="decode.* and eval.*, such as decode.beams=3"
    )
    evaluate.add_argument("--split", help="split to evaluate on (default: the recipe's, else the task's last)")
    evaluate.add_argument("--samples", type=int, help="a fixed random subset of this size")
    evaluate.add_argument("--task", help="another task than the run's own; see `perceptune list tasks`")
    evaluate.add_argument("--data", help="that task's data; without --task a file with one JSON object a line")
    evaluate.add_argument(
        "--gap", action="store_true", help="the run's own data, too, and the gap to --task and --data (`eval.others`)"
    )
    evaluate.add_argument(
        "--control", "--shuffled", action="store_true", default=None, help="also with the media shuffled"
    )
    evaluate.add_argument("--no-media", action="store_true", default=None, help="also without any medium")
    evaluate.add_argument("--predictions", metavar="FILE", help="score these answers; the model is not run")
    evaluate.add_argument("--out", help="folder of the results (default: the run's; RUN/eval/NAME for another task)")
    evaluate.add_argument("--json", action="store_true")

    predict = commands.add_parser("predict", help="answer a whole file or folder; goes on where it was stopped")
    predict.add_argument("run")
    predict.add_argument("source", metavar="FILE|DIR", help="JSON lines with media and prompts, or media files")
    predict.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="decode.*, such as decode.beams=3")
    predict.add_argument("--prompt", help="what to ask where a row has no `prompt`, and of files in a folder")
    predict.add_argument("--out", metavar="FILE", help="JSON lines (default: RUN/predicted_NAME.jsonl)")
    predict.add_argument("--batch-size", type=int, help="rows answered at a time (default: the recipe's)")

    answer = commands.add_parser("answer", help="ask a run about a picture")
    answer.add_argument("run")
    answer.add_argument("question", help="what to ask; '' for a run whose template needs no question")
    answer.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="decode.*, such as decode.beams=3")
    answer.add_argument("--image", help="picture file")
    answer.add_argument("--audio", help="sound file")
    answer.add_argument("--video", help="video file")
    answer.add_argument("--choices", metavar="A,B,C", help="choices, the most likely of which is the answer")
    answer.add_argument(
        "--logprobs", action="store_true", help="also print log-probabilities, of tokens or of the choices"
    )
    answer.add_argument("--json", action="store_true")

    add_serve(commands.add_parser("serve", help="answer over HTTP, as OpenAI's chat completions do"))

    compare = commands.add_parser("compare", help="methods, seeds and settings on equal terms: table and picture")
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help="one or several; their budgets must be equal")
    compare.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys, for every run")
    compare.add_argument(
        "--methods", metavar="A,B", help="methods to compare (default: the recipe's `compare.methods`, else its method)"
    )
    compare.add_argument(
        "--seeds", metavar="0,1,2", help="seeds of each method (default: the recipe's `compare.seeds`)"
    )
    compare.add_argument(
        "--grid", action="append", metavar="KEY=V,V", help="settings to choose from; may be repeated; K+K=V,V together"
    )
    compare.add_argument("--out", help="folder (default: runs/compare-RECIPE)")
    compare.add_argument("--dry-run", action="store_true", help="say what would be run, and for how long")
    compare.add_argument("--timing", action="store_true", help="train nothing: what a step of each costs, side by side")
    compare.add_argument(
        "--rounds", type=int, default=5, help="with --timing: rounds of measuring, in turns (default: %(default)s)"
    )
    compare.add_argument("--samples", type=int, help="with --timing: samples that are timed (default: 4 steps)")
    compare.add_argument("--json", action="store_true")

    score = commands.add_parser("score", help="score a file of predictions against one of references")
    score.add_argument("predictions", help="JSONL, a table or a JSON list: COCO or VQA results, a run's predictions")
    score.add_argument("references", help="JSONL, a table, or COCO, VQA, GQA or A-OKVQA annotations")
    score.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the metric's options, such as lowercase=true")
    score.add_argument("--metric", required=True, metavar="NAME[,NAME]", help="see `perceptune list metrics`")
    score.add_argument("--dialect", help="vqa: official, always, evalai, epalm; gqa: official, lmms-eval, epalm")
    score.add_argument("--subset", action="store_true", help="leave out what has no prediction instead of refusing it")
    score.add_argument("--first-lines", action="store_true", help="judge only the first line of each text")
    score.add_argument("--per-sample", metavar="FILE", help="also write one JSON line a sample with its values")
    score.add_argument("--no-intervals", action="store_true", help="leave out bootstrap intervals")
    score.add_argument("--json", action="store_true")

    add_report(commands.add_parser("report", help="one page of a run, several, or a comparison"))
    shared = add_share(commands)

    show = commands.add_parser("show", help="parts, parameter counts and touched places of a recipe or run")
    show.add_argument("source", metavar="RECIPE|RUN")
    show.add_argument("--json", action="store_true")

    listing = commands.add_parser("list", help="what can be named in a recipe")
    listing.add_argument("kind", choices=KINDS)
    listing.add_argument("--json", action="store_true")

    features = commands.add_parser("features", help="precompute a recipe's encoder features; manage the feature cache")
    features.add_argument("what", metavar="RECIPE|info|verify|gc", help="a recipe, or what to do with the caches")
    features.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys")
    features.add_argument(
        "--split", action="append", default=[], help="split to compute; may be repeated (default: all)"
    )
    features.add_argument("--dir", help="info, verify, gc: the caches' folder (default: the user's)")
    features.add_argument("--older-than", type=float, metavar="DAYS", help="gc: remove caches unused for so long")
    features.add_argument("--max-gb", type=float, metavar="N", help="gc: remove the least recently used beyond this")
    features.add_argument("--json", action="store_true")

    add_data(commands.add_parser("data", help="validate, convert or synthesise a data set"))

    doctor = commands.add_parser("doctor", help="check this machine, and what a recipe will need of it")
    doctor.add_argument("recipe", nargs="?")
    doctor.add_argument("--json", action="store_true")
    doctor.add_argument("--gpu", action="store_true", help="try the GPU with tiny models against the CPU (minutes)")
    doctor.add_argument(
        "--out", default="perceptune-gpu.json", metavar="FILE", help="with --gpu: where to write (default: %(default)s)"
    )

    add_imports(commands)

    assets = commands.add_parser("assets", help="fetch the embedded default models and data")
    assets.add_argument("names", nargs="*", metavar="NAME", help="assets to fetch (default: all)")
    assets.add_argument("--list", action="store_true", help="list the assets, and where each lies")
    add_commands(commands)
    for joining in (train, evaluate, predict):
        joining.add_argument(
            "--join-timeout", type=float, metavar="SECONDS",
            help="seconds to wait for the other processes of one job (default: 600)",
        )  # fmt: skip
    for command in (train, evaluate, predict, answer, *shared):
        command.add_argument("--trust", action="store_true", help="let a run folder's recipe name third-party code")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    code = run(arguments)
    together = sys.modules.get("perceptune.utils.distributed")
    if together is not None and "WORLD_SIZE" in os.environ:  # one of several processes
        together.hard_exit(code)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 for a check that found something, 2 for the user's mistakes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what it cannot encode is escaped: a data set may hold any character
            stream.reconfigure(errors="backslashreplace")
    options, rest = parser().parse_known_args(arguments)
    _take_overrides(options, rest)
    options.words = shlex.join(["perceptune", *(sys.argv[1:] if arguments is None else arguments)])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads warn when a worker forks
    from perceptune.cli import commands

    try:
        code: int = getattr(commands, options.command.replace("-", "_"))(options)
    except NonMainProcessError:
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `perceptune show ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder without permission: the user's to mend, not ours to explain
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if together := sys.modules.get("perceptune.utils.distributed"):
            together.destroy_process_group()
    return code


def _take_overrides(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """KEY=VALUE, and the recipe to train, may stand anywhere; anything else left over is a mistake."""
    left = list(rest)
    if options.command == "train":
        words = [word for word in (options.recipe, *options.overrides, *left) if word and not word.startswith("-")]
        left = [word for word in left if word.startswith("-")]
        named = [word for word in words if "=" not in word]
        options.recipe = named[0] if named else None
        options.overrides = [word for word in words if "=" in word]
        left += named[1:]
    elif options.command == "serve":
        words = [*options.runs, *options.overrides, *(word for word in left if not word.startswith("-"))]
        left = [word for word in left if word.startswith("-")]
        options.overrides = [word for word in words if word.startswith(("decode.", "eval.", "cache."))]
        options.runs = [word for word in words if word not in options.overrides]
    elif options.command == "compare":
        words = [*options.recipes, *options.overrides, *(word for word in left if not word.startswith("-"))]
        left = [word for word in left if word.startswith("-")]
        options.recipes = [word for word in words if "=" not in word]
        options.overrides = [word for word in words if "=" in word]
    elif options.command in (
        "eval",
        "predict",
        "answer",
        "features",
        "import-epalm",
        "score",
        "data",
        "verify",
    ) and hasattr(options, "overrides"):
        options.overrides += [word for word in left if "=" in word and not word.startswith("-")]
        left = [word for word in left if word not in options.overrides]
    if left:
        parser().error(f"unrecognized arguments: {' '.join(left)}")
