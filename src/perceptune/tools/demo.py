"""The demo, end to end: train on real data, evaluate, compare with shuffled images, draw the results."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perceptune.config.recipe import load_recipe
from perceptune.data.media.source import open_image
from perceptune.errors import UserError
from perceptune.evaluation.evaluate import evaluate
from perceptune.evaluation.results import RESULTS, read_stored_predictions
from perceptune.models.pretrained import DEFAULT_ENCODERS, DEFAULT_LM
from perceptune.models.run_folder import META
from perceptune.tools.doctor import GIB, total_memory
from perceptune.tools.plots.figures import NEEDED as NEEDED_FOR_IMAGES
from perceptune.tools.plots.figures import GridCell, answer_grid, has_matplotlib, training_curve
from perceptune.training.trainer import train
from perceptune.utils import downloads
from perceptune.utils.run_log import read_log

# Two minutes at most: enough to check that everything works together, not for the final accuracy.
SMOKE = (
    "name=smoke", "train.steps=40", "train.standardize_samples=64", "train.samples=1200", "eval.every=20",
    "eval.during_samples=50", "eval.samples=200",
)  # fmt: skip
QUESTIONS_SHOWN = 12
ASSETS = (DEFAULT_LM, DEFAULT_ENCODERS["image"], "easy-vqa")
NEEDED = 4 * GIB  # a float32 training takes 3.1


def run_demo(
    run: Path, *, smoke: bool = False, say: Callable[[str], None] = print,
    print_scores: Callable[[dict[str, Any]], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Train, evaluate and draw the demo in a run folder; return its results.

    An interrupted demo resumes; a finished one is kept under another name.
    """
    require_memory()
    overrides = SMOKE if smoke else ()
    recipe = load_recipe("demo", overrides)
    downloads.fetch(ASSETS)
    resume = (run / META).is_file() and not (run / RESULTS).is_file()
    if resume:
        say(f"going on with the unfinished run in {run}")
    elif run.exists():
        say(f"the earlier run is kept as {_put_aside(run)}")
    say(f"[1/3] training: {recipe.method.name} on easy-VQA, SmolLM2-135M and DINOv2-S frozen")
    trained = train("demo", run, overrides=overrides, resume=resume)
    if trained.interrupted:
        say(f"stopped after step {trained.steps}, everything is saved; the same command goes on")
        raise KeyboardInterrupt
    say("[2/3] evaluation on the test split, then with every image replaced by another one")
    results = evaluate(run)
    say("[3/3] images")
    if has_matplotlib():
        draw(run)
    else:
        say(f"there are none: {NEEDED_FOR_IMAGES}")
    print_scores(results)
    _explain(results, run, say)
    return results


def require_memory() -> None:
    """Raise `UserError` on a machine that would run out of memory, before anything is downloaded."""
    total = total_memory()
    if total is not None and total < NEEDED:
        less = "`perceptune train` on your own data with a smaller LM (`--lm`) needs less"
        needed = f"the demo needs {NEEDED / GIB:.0f} GiB of memory"
        raise UserError(f"{needed}, and there are {total / GIB:.1f} GiB here; {less}")


def draw(run: Path) -> None:
    """Draw a grid of answered test questions and the training curve."""
    rows = read_stored_predictions(run)
    step = max(len(rows) // QUESTIONS_SHOWN, 1)
    cells = [
        GridCell(open_image(Path(row["media"]["image"])), row["prompt"], row["answer"], row["targets"][0],
                 correct=row["scores"]["accuracy"] == 1.0)
        for row in rows[::step][:QUESTIONS_SHOWN]
    ]  # fmt: skip
    title = "Test images it never saw: question, answer, and the truth where it is wrong"
    answer_grid(cells, run / "answers.png", title=title)
    training_curve(read_log(run), run / "curve.png")


def _explain(results: dict[str, Any], run: Path, say: Callable[[str], None]) -> None:
    low, high = results["gap_yes_no_interval"]
    example = read_stored_predictions(run)[0]
    images = f"images: {run / 'answers.png'}, {run / 'curve.png'}; " if has_matplotlib() else ""
    say(f"""\
Most yes/no answers of this data can be guessed from the wording, so the shuffled column is the one to beat:
seeing is worth {results["gap_yes_no"]:+.3f} there (95 % interval {low:+.3f} to {high:+.3f}).
trained share {100 * results["trained_share"]:.3f} % of the parameters, {results["train_seconds"] / 60:.1f} minutes, \
{results["samples_per_second"]:.1f} samples/s
{images}figures: {run / RESULTS}
next, ask it yourself, or show it your own images:
  perceptune answer {run} --image {example["media"]["image"]} "{example["prompt"]}"
  perceptune train small --data my.jsonl --run runs/mine""")


def _put_aside(run: Path) -> Path:
    names = (run.with_name(f"{run.name}-{number}") for number in itertools.count(1))
    return run.rename(next(name for name in names if not name.exists()))
