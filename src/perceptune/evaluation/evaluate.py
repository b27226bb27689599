"""Evaluation by generation or by ranking choices, with controls and other data sets."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptune.config.overrides import Override
from perceptune.config.recipe import Recipe
from perceptune.config.schema import NamedPart, OtherSet
from perceptune.data.build_task import make_task, task_of
from perceptune.data.conversations import split_answers
from perceptune.data.tasks.base import Task
from perceptune.errors import UserError
from perceptune.evaluation import results as report
from perceptune.evaluation import runner
from perceptune.evaluation.controls import CONTROLS
from perceptune.evaluation.model_card import write_card
from perceptune.models.base import AdaptedModel
from perceptune.models.build import text_of
from perceptune.models.ensemble import Ensemble, ensemble_name, load_answering
from perceptune.models.run_folder import make_writable
from perceptune.models.run_location import is_address, local_run
from perceptune.types import Sample
from perceptune.utils.atomic_io import write_json
from perceptune.utils.distributed import World


@dataclass(frozen=True)
class EvaluatedSet:
    """Samples of a task, checked to have the references for its metric."""

    part: NamedPart | None
    task: Task
    split: str
    samples: Sequence[Sample]  # one per answer of a conversation
    conversations: int | None = None  # number of rows, if some of them have several answers

    def counts(self) -> dict[str, int]:
        """Return the numbers of samples and of conversations for the results."""
        conversations = {} if self.conversations is None else {"evaluated_conversations": self.conversations}
        return {"evaluated_samples": len(self.samples), **conversations}


def evaluated_set(
    recipe: Recipe, part: NamedPart | None = None, split: str | None = None, samples: int | None = None
) -> EvaluatedSet:
    """Return the recipe's evaluated set, or a set of `samples` of a split of another task (`part`)."""
    task = make_task(recipe) if part is None else task_of(part)
    if part is None:
        split, samples = split or recipe.eval.split, recipe.eval.samples if samples is None else samples
    split = split or task.splits[-1]
    rows = runner.select_rows(task, split, samples)
    chosen = split_answers(rows)
    runner.check_has_references(task, chosen)  # before hours of generation
    return EvaluatedSet(part or recipe.task, task, split, chosen, None if chosen is rows else len(rows))


def evaluate(
    run: str | Path, *, split: str | None = None, samples: int | None = None, control: bool | None = None,
    no_media: bool | None = None, exchanged: bool = False, batch_size: int | None = None, trust: bool = False,
    overrides: Sequence[Override] = (), into: str | Path | None = None, task: Mapping[str, Any] | None = None,
    command: str | None = None, join_timeout: float | None = None, ensemble: Sequence[str | Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a run folder's model; write `results.json` and predictions into the folder and return the results.

    `control` also evaluates with the media shuffled among the samples, `no_media` without media, `exchanged` with the
    media of each sample in reverse order; the prompts are the same. The data sets of `eval.others` follow, with the gap
    to them. Defaults come from the recipe, whose `decode` and `eval` keys `overrides` may change. `task`, a task's
    `name` and options, replaces the run's own. `into` is another folder for the files; `command` is stored in the
    results. `join_timeout` as in `train`. The runs in `ensemble` answer together with `run`; the results then go into
    a folder of their own.
    """
    if is_address(run) and into is None:
        raise UserError(f"{run}: the results of a run on a hub need a folder: name one (`into`, --out)")
    world = World(join_timeout)
    with world.synced_errors():
        run = local_run(run)
        model = load_answering(
            run, ensemble, trust=trust, overrides=overrides, device=world.loading_device, ready=world.size == 1
        )
        part = None if task is None else NamedPart(**task)
        own = evaluated_set(model.recipe, part, split, samples)
        runner.require_answerable(model, own.samples)
        controls = _controls(model, own.samples, control, no_media, exchanged)
        given = model.recipe.eval.others if task is None else {}
        others = {name: evaluated_set(model.recipe, other.task, other.split, other.samples)
                  for name, other in given.items()}  # fmt: skip

    def note() -> dict[str, Any]:
        """Collect the provenance of the results; called early, so that it fails before the first answer."""
        make_writable(folder, "name another folder for the results by --out")
        return {
            **own.counts(), **report.provenance(model, run), "split": own.split, "command": command,
            "trained_on_this_split": any(
                is_trained_on(recipe, own, is_own=task is None) for recipe in _recipes_of(model)
            ),
            "data": report.dataset_info(own.part, own.split, own.samples), **report.training_info(run),
        }  # fmt: skip

    apart = run / "eval" / ensemble_name(ensemble) if ensemble else run
    folder = apart if into is None else Path(into)
    noted = world.run_on_main(note)
    if world.size > 1:
        model.place(world)
        model.setup(sharded=world.is_sharded)
    with world.synced_errors():
        model.precompute(own.samples, rank=world.rank, world=world.size)  # the shuffled control has the same media
    known: dict[Hashable, runner.Prediction] = {}  # with one prompt for all, shuffled media ask nothing new
    seen = runner.predict_and_score(
        model, own.task, own.samples, world, batch_size=batch_size, label="evaluate", known=known
    )
    blind = {
        name: runner.predict_and_score(
            model, own.task, rows, world, batch_size=batch_size, label=f"{name.replace('_', ' ')} control", known=known
        )
        for name, rows in controls.items()
    }
    judged = {
        name: _evaluate_other(model, name, other, given[name], world, batch_size) for name, other in others.items()
    }

    def written() -> dict[str, Any]:
        results = _written(folder, own, seen, {name: (controls[name], blind[name]) for name in controls}) | noted
        if others:
            results["others"] = {
                name: _other_results(folder, name, own, seen, others[name], judged[name]) for name in others
            }
        write_json(folder / report.RESULTS, results)
        if folder == run:
            write_card(run)
        return results

    return world.run_on_main(written)


def _controls(
    model: AdaptedModel, samples: Sequence[Sample], shuffled: bool | None, no_media: bool | None, exchanged: bool
) -> dict[str, Sequence[Sample]]:
    """Return the samples of the controls that are wanted; None: as the recipe says."""
    config, needs_media = model.recipe.eval, bool(model.required_modalities)
    if shuffled is None:
        shuffled = config.shuffled_control or config.at_end
    if no_media is None:
        no_media = config.no_media_control or (config.at_end and not needs_media)
    if no_media and needs_media:
        raise UserError(f"`backbone: {model.recipe.backbone}` cannot answer without media: leave out --no-media and "
                        "eval.no_media_control")  # fmt: skip
    wanted = {"shuffled": shuffled, "no_media": no_media, "exchanged": exchanged}
    return {name: CONTROLS[name](samples, model.recipe.seed) for name in CONTROLS if wanted[name]}


def _evaluate_other(
    model: AdaptedModel, name: str, other: EvaluatedSet, config: OtherSet, world: World, batch_size: int | None
) -> runner.EvalOutput:
    with _in_words_of(model, config):
        with world.synced_errors():
            model.precompute(other.samples, rank=world.rank, world=world.size)
        return runner.predict_and_score(
            model, other.task, other.samples, world, batch_size=batch_size, label=f"evaluate {name}"
        )


def _written(
    folder: Path,
    own: EvaluatedSet,
    seen: runner.EvalOutput,
    controls: Mapping[str, tuple[Sequence[Sample], runner.EvalOutput]],
) -> dict[str, Any]:
    """Write the predictions into a folder and return the results."""
    results = report.metric_values(own.task, own.samples, seen)
    report.write_predictions(folder / report.PREDICTIONS, own.samples, own.task, seen)
    for name in CONTROLS:
        if name not in controls:  # a file of an earlier evaluation does not belong to these results
            (folder / report.predictions_name(name)).unlink(missing_ok=True)
            continue
        rows, blind = controls[name]
        report.write_predictions(folder / report.predictions_name(name), rows, own.task, blind)
        results |= {f"{key}_{name}": value for key, value in blind.summary.items()}
        results |= report.control_gap(name, own.samples, seen, blind)
    return results


@contextmanager
def _in_words_of(model: AdaptedModel, other: OtherSet) -> Iterator[None]:
    """Use another data set's text format and decoding inside the block."""
    recipe, text = model.recipe, model.text
    model.recipe = recipe.model_copy(
        update={"text": other.text or recipe.text, "decode": other.decode or recipe.decode}
    )
    try:
        if other.text or other.decode:
            model.text = text_of(model)
        yield
    finally:
        model.recipe, model.text = recipe, text


def _other_results(
    folder: Path, name: str, own: EvaluatedSet, seen: runner.EvalOutput, other: EvaluatedSet, judged: runner.EvalOutput
) -> dict[str, Any]:
    """Write the predictions on another data set; return its results and the gap of each value that both sets have."""
    report.write_predictions(folder / report.predictions_name(name), other.samples, other.task, judged)
    return {
        "metric": other.task.metric, **report.metric_values(other.task, other.samples, judged), "split": other.split,
        **other.counts(), "data": report.dataset_info(other.part, other.split, other.samples),
        "gaps": report.cross_dataset_gap(own.samples, seen, other.samples, judged),
    }  # fmt: skip


def _recipes_of(model: AdaptedModel) -> list[Recipe]:
    return [member.model.recipe for member in model.members] if isinstance(model, Ensemble) else [model.recipe]


def is_trained_on(recipe: Recipe, evaluated: EvaluatedSet, *, is_own: bool) -> bool:
    """Return whether a run of this recipe was trained on these samples."""
    if recipe.train.steps == 0 or recipe.task is None:
        return False
    own = make_task(recipe)
    first = own.splits[0]
    return (is_own and evaluated.split == first) or bool(
        own.read_from(first) & evaluated.task.read_from(evaluated.split)
    )
