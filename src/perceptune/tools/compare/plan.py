"""Plan of a comparison: its runs, checked before the first one starts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from perceptune.config.command_schema import CompareConfig
from perceptune.config.hold_out import HELD_OUT, HoldOutConfig
from perceptune.config.overrides import parse_value
from perceptune.config.recipe import Recipe, load_recipe, validate
from perceptune.data.build_task import make_task
from perceptune.data.holdout_split import selecting_splits
from perceptune.errors import UserError
from perceptune.evaluation.runner import check_has_references, select_subset
from perceptune.models.backbone import method_leaf, method_options
from perceptune.tools.summary import summarize

# Keys that all runs of a comparison share: none of them can be searched over.
BUDGET = ("steps", "epochs", "batch_size", "batch_tokens", "accumulate", "samples", "samples_seed", "hold_out")
OWN_GRID = "compare.grid"  # key of a label with a grid of its own, such as the learning rate of its LM
Setting = Mapping[str, Any]  # recipe key -> value


@dataclass(frozen=True)
class PlannedRow:
    """One row of the table: a recipe whose settings and seeds vary."""

    label: str
    recipe: Recipe
    trained: int
    share: float
    settings: tuple[Setting, ...] = ({},)  # one of them is chosen: the plan's, or equally many of its own

    def with_(self, setting: Setting, seed: int) -> Recipe:
        """Return the recipe of one run."""
        return load_recipe(self.recipe, [*setting.items(), ("seed", seed)])


@dataclass(frozen=True)
class Plan:
    """All runs: every setting with the first seed, then the chosen one with every seed."""

    entries: tuple[PlannedRow, ...]
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    select_on: str | None  # the split that selects; None if there is nothing to select
    select_samples: int | None
    test_on: str
    metric: str

    @property
    def runs(self) -> int:
        """Number of trainings."""
        return len(self.entries) * (len(self.settings) + len(self.seeds) - 1)


def make_plan(
    sources: Sequence[str | Recipe | dict[str, Any]], overrides: Sequence[str] = (), *, methods: Sequence[str] = (),
    seeds: Sequence[int] = (), grid: Mapping[str, Sequence[Any]] | None = None,
) -> Plan:  # fmt: skip
    """Make the plan for one or several recipes; defaults are from `compare` of the first.

    Raises `UserError` for an unknown method or key, unequal budgets, and if no split is left to select or test on.
    """
    recipes = [load_recipe(source, overrides) for source in sources]
    if not recipes:
        raise UserError("nothing to compare: name a recipe")
    config = recipes[0].compare
    settings = _settings(config.grid if grid is None else grid)
    recipes = [_with_held_out(recipe, config, selects=len(settings) > 1) for recipe in recipes]
    on_method = [word for word in overrides if word.startswith("method.") and not word.startswith("method.name=")]
    made = [pair for recipe in recipes for pair in _variants(recipe, methods, on_method, len(recipes) > 1)]
    _require_comparable([one for _, one in made])
    test_on, select_on, metric = _splits(made[0][1], selects=len(settings) > 1)
    chosen = [settings if grid is not None else _settings_of(label, one, settings) for label, one in made]
    entries = tuple(_entry(label, one, own) for (label, one), own in zip(made, chosen, strict=True))
    if len({folder_name(entry.label) for entry in entries}) < len(entries):
        raise UserError(f"two rows of the comparison have one name: {', '.join(entry.label for entry in entries)}")
    distinct = tuple(dict.fromkeys(seeds or config.seeds))
    return Plan(entries, distinct, settings, select_on, config.select_samples, test_on, metric)


def parse_grid(given: Sequence[str]) -> dict[str, list[Any]]:
    """Parse `train.lr=1e-3,4e-3` to {"train.lr": [0.001, 0.004]}."""
    grid = {}
    for axis in given:
        keys, equals, values = axis.partition("=")
        if not equals or not keys or not values:
            raise UserError(f"`--grid {axis}` is not of the form key=value,value,...")
        grid[keys] = [parse_value(value, keys) for value in values.split(",")]
    return grid


def folder_name(text: str) -> str:
    """Return a name that is safe for a folder."""
    return re.sub(r"[^\w.+=,@-]", "-", text)


def setting_name(setting: Setting) -> str:
    """Format a setting: `train.lr=0.004, method.n_levels=2`."""
    return ", ".join(f"{key}={value}" for key, value in setting.items()) or "as given"


def _settings(grid: Mapping[str, Sequence[Any]]) -> tuple[Setting, ...]:
    for keys in grid:
        for key in keys.split("+"):
            section, _, name = key.partition(".")
            if section == "train" and name.partition(".")[0] in BUDGET:
                alike = "every run of a comparison has the same budget"
                raise UserError(f"grid key `{key}`: {alike}; give one `{key}=VALUE`")
            if section in Recipe.model_fields and section not in ("train", "method"):
                raise UserError(f"grid key `{key}`: a grid varies keys of `train` and `method` only")
    axes = [[dict.fromkeys(keys.split("+"), value) for value in values] for keys, values in grid.items()]
    return tuple({key: value for part in parts for key, value in part.items()} for parts in product(*axes))


def _settings_of(label: str, recipe: Recipe, common: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """Return a label's own settings, if its keys include `compare.grid`, else the common ones."""
    if not recipe.compare.grid:
        return common
    own = _settings(recipe.compare.grid)
    if len(own) != len(common):
        raise UserError(f"unequal terms: `{label}` is chosen from {len(own)} settings, the others from {len(common)}")
    return own


def _with_held_out(recipe: Recipe, config: CompareConfig, *, selects: bool) -> Recipe:
    """Return the recipe with a validation split to select on."""
    task = make_task(recipe)
    test_on = recipe.eval.split or task.splits[-1]
    if not selects or set(selecting_splits(task.splits)) - {test_on}:
        return recipe
    if isinstance(recipe.train.hold_out, HoldOutConfig):
        raise UserError("nothing to select on: `train.hold_out.selecting` is 0; leave a part to split `validation`")
    return load_recipe(recipe, [("train.hold_out", config.model_dump(mode="json")["hold_out"])])


def _variants(
    recipe: Recipe, methods: Sequence[str], on_method: Sequence[str], several: bool
) -> list[tuple[str, Recipe]]:
    """Return the recipe with each of the methods, with their options from `compare.methods` if any."""
    plain, offered = {**recipe.model_dump(mode="json"), "compare": {}}, recipe.compare.methods
    labels = list(methods) or list(offered)
    if not labels:
        return [(recipe.name if several else recipe.method.name, load_recipe(plain))]
    made = []
    for label in labels:
        keys = dict(offered.get(label, plain["method"] if label == recipe.method.name else {}))
        own_grid = keys.pop(OWN_GRID, {})
        method = {"name": label, **{key: value for key, value in keys.items() if "." not in key}}
        # The method's requirements, such as float32 for trained weights.
        beside = [(key, value) for key, value in keys.items() if "." in key]
        full = f"{recipe.name}/{label}" if several else label
        one = load_recipe({**plain, "name": folder_name(full), "method": method}, [*beside, *on_method])
        if own_grid:
            one = validate(Recipe, {**one.model_dump(mode="json"), "compare": {"grid": own_grid}}, f"`{label}`")
        method_leaf(one)  # raises for an unknown name
        made.append((full, one))
    return made


def _require_comparable(recipes: Sequence[Recipe]) -> None:
    first, *others = [
        {"task": recipe.task, **{f"train.{key}": getattr(recipe.train, key) for key in BUDGET},
         "eval.split": recipe.eval.split, "eval.samples": recipe.eval.samples}
        for recipe in recipes
    ]  # fmt: skip
    for other in others:
        for key, value in first.items():
            if other[key] != value:
                raise UserError(f"unequal terms: the recipes have {key} = {value} and {other[key]}")


def _splits(recipe: Recipe, *, selects: bool) -> tuple[str, str | None, str]:
    """Return the split to test on, the one to select on, and the metric."""
    task = make_task(recipe)
    test_on = recipe.eval.split or task.splits[-1]
    if test_on in (task.splits[0], HELD_OUT):
        names = ", ".join(f"`{split}`" for split in task.splits)
        unseen = "a comparison is tested on data that nothing was trained or chosen on"
        raise UserError(f"nothing to test on: the task has {names}, and {unseen}")
    left = [split for split in selecting_splits(task.splits) if split != test_on]
    if recipe.eval.every is not None:
        during = recipe.eval.during_split or next(iter(selecting_splits(task.splits)), None)
        if during == test_on:
            raise UserError(f"`eval.every` would choose on `{test_on}`, the split to test on: set `eval.during_split`")
    check_has_references(task, select_subset(task, test_on, recipe.eval.samples))
    return test_on, left[0] if selects else None, task.metric


def _entry(label: str, recipe: Recipe, settings: Sequence[Setting]) -> PlannedRow:
    shown = summarize(recipe)
    # A run is independent of the others, and evaluated on the test only if its setting is selected.
    evaluation = recipe.eval.model_copy(
        update={"at_end": False, "shuffled_control": recipe.eval.shuffled_control or recipe.eval.at_end}
    )
    alone = recipe.model_copy(update={"compare": CompareConfig(), "eval": evaluation})
    entry = PlannedRow(label, alone, shown["trainable"], shown["share"], tuple(settings))
    for setting in settings:
        method_options(entry.with_(setting, recipe.seed))
    return entry
