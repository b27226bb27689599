"""The recipe: one pydantic tree with every default. Unknown keys are rejected with the nearest valid key.

A recipe file contains only differences from these defaults. `load_recipe` reads a file or a named recipe and applies
dotted overrides (`train.steps=500`). The options of a method, an encoder or a task belong to its leaf file.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from perceptune.config import schema
from perceptune.config.command_schema import BuildConfig, CompareConfig
from perceptune.config.overrides import Override, put, typed
from perceptune.config.section import ConfigSection
from perceptune.config.substitution import drop_foreign_keys, part_names
from perceptune.config.training import TrainConfig
from perceptune.errors import UserError, nearest
from perceptune.utils.paths import absolute, given_path

FACTS = "facts.yaml"  # settings of the papers' runs, in the folder of the shipped recipes but not one of them


class Recipe(ConfigSection):
    """The complete configuration of a run."""

    name: str = "run"
    seed: int = 0
    backbone: Literal["splice", "instructblip"] = Field(
        "splice",
        description="splice = encoders and a decoder-only LM, joined by slots; instructblip = an InstructBLIP or "
        "BLIP-2 named by `lm`, with a ViT, a Q-Former and an LM of its own",
    )
    lm: Annotated[schema.LMConfig, schema.named("id")] = schema.LMConfig()
    encoders: dict[str, Annotated[schema.EncoderConfig, schema.named("id")]] = Field(
        default_factory=lambda: {"image": schema.EncoderConfig()}, min_length=1
    )
    method: Annotated[schema.NamedPart, schema.named("name")] = schema.NamedPart(name=schema.DEFAULT_METHOD)
    build: BuildConfig | None = None  # the model that `build-instructblip --recipe` creates for `lm`
    task: Annotated[schema.NamedPart, schema.named("name")] | None = None
    init_from: Annotated[schema.InitConfig, schema.named("run")] | None = None
    text: schema.TextConfig = schema.TextConfig()
    cache: schema.CacheConfig = schema.CacheConfig()
    train: TrainConfig = TrainConfig()
    eval: schema.EvalConfig = schema.EvalConfig()
    decode: schema.DecodeConfig = schema.DecodeConfig()
    compare: CompareConfig = CompareConfig()

    def dump(self) -> str:
        """Return the resolved recipe as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(
    source: str | Path | dict[str, Any] | Recipe, overrides: Sequence[Override] = (), *, where: str = "recipe"
) -> Recipe:
    """Load a recipe from a file, the name of a shipped recipe, a mapping or a recipe, and apply overrides.

    Overrides are `key.sub=value` as on a command line, or pairs of a key and its value. `where` names the origin of a
    mapping or recipe in errors.
    """
    if isinstance(source, Recipe):
        data = source.model_dump(mode="json")
    elif isinstance(source, dict):
        data = _deep_copy(source)
    else:
        path = find_recipe(str(source))
        data, where = read_yaml(path), str(path)
        data.setdefault("name", path.stem)
        _resolve_files(data, path.parent)
    names = part_names(data)
    for override in overrides:
        put(data, override)
    if overrides:
        data = typed(data, Recipe, backbone=str(data.get("backbone", "splice")))
    if dropped := drop_foreign_keys(data, names, overrides):
        left_out = ", ".join(f"`{key}`" for key in dropped)
        print(f"{where}: left out, for they belong to what was replaced: {left_out}", file=sys.stderr)
    return validate(Recipe, data, where)


def validate(model: type[Any], data: Any, where: str) -> Any:
    """Create `model` from `data`. Raises one `UserError` naming the first invalid key and the nearest valid one."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = _key_of(model, data, first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{where}: unknown key `{key}`{nearest(str(first['loc'][-1]), _siblings(model, first['loc']))}"
            ) from None
        reason = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"[:200]
        raise UserError(f"{where}: `{key}`: {reason}{given}") from None


def recipes_dir() -> Path:
    """Return the folder of the shipped recipes: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, such as `paper/epalm`."""
    root = recipes_dir()
    found = (path for path in root.rglob("*.yaml") if path.name != FACTS)
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in found)


def find_recipe(source: str) -> Path:
    """Find a recipe file by its path, or by a shipped recipe's name with or without `recipes/` and `.yaml`."""
    if given_path(source).is_file():
        return given_path(source)
    name = source.removeprefix("recipes/").removesuffix(".yaml")
    if name in recipe_names():
        return recipes_dir() / f"{name}.yaml"
    raise UserError(f"no recipe `{source}`: neither a file nor a shipped recipe{nearest(name, recipe_names())}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys of a recipe file without defaults."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, this file holds {type(data).__name__}")
    return data


def _resolve_files(data: dict[str, Any], folder: Path) -> None:
    """Resolve relative data files of tasks, and the run to start from, in the recipe's folder if they exist there."""
    for task in tasks_in(data):
        for key in file_keys(task):
            if _lies_in(folder, str(task[key])):
                task[key] = str((folder / str(task[key])).resolve())
    init = data.get("init_from")
    if isinstance(init, str):
        data["init_from"] = init = {"run": init}
    if isinstance(init, dict) and _lies_in(folder, str(init.get("run"))):
        init["run"] = str((folder / str(init["run"])).resolve())


def tasks_in(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks that a recipe gives as mappings: its own and those of `eval.others`."""
    return [task for task in _tasks(data) if isinstance(task, dict)]


def _tasks(data: dict[str, Any]) -> list[Any]:
    evaluation = data.get("eval")
    others = evaluation.get("others") if isinstance(evaluation, dict) else None
    owners = [data, *(others.values() if isinstance(others, dict) else ())]
    return [found for owner in owners if isinstance(owner, dict) for found in _with_parts(owner.get("task"))]


def _with_parts(task: Any) -> list[Any]:
    """Return the parts of a mixture of tasks, then the task itself."""
    parts = task.get("parts") if isinstance(task, dict) else None
    inside = parts.values() if isinstance(parts, dict) else ()
    return [*(found for part in inside for found in _with_parts(part)), task]


def leaf_names(data: dict[str, Any]) -> list[str]:
    """Return the names of a recipe's method and tasks as they are written. Imports nothing."""
    parts = [data.get("method"), *_tasks(data)]
    return [str(part.get("name")) if isinstance(part, dict) else str(part) for part in parts]


def _lies_in(folder: Path, name: str) -> bool:
    """Return whether a relative name, or a pattern with wildcards or braces, matches something in a folder."""
    if "://" in name or Path(name).is_absolute():
        return False
    return (folder / name).exists() or any(folder.glob(re.sub(r"\{[^{}]*\}", "*", name)))


def file_keys(task: dict[str, Any]) -> list[str]:
    """Return the given keys of a task that name files: those whose type includes `Path`."""
    from perceptune.config.registry import leaf

    fields = leaf("tasks", str(task.get("name"))).module.TASK.Options.model_fields
    named = {key for key, field in fields.items() if "Path" in str(field.annotation)}
    return [key for key in task if key in named and isinstance(task[key], str | Path)]


def absolute_files(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task's keys with absolute paths of their files.

    The value of a key that may also be a name, such as a data set's on a hub, is a path only if that path exists.
    """
    from perceptune.config.registry import leaf

    fields = leaf("tasks", str(task.get("name"))).module.TASK.Options.model_fields
    paths = {key: str(task[key]) for key in file_keys(task)}
    return task | {
        key: absolute(name)
        for key, name in paths.items()
        if str not in get_args(fields[key].annotation) or _lies_in(Path.cwd(), name)
    }


def _key_of(model: type[BaseModel], data: Any, location: Sequence[str | int]) -> str:
    """Return the dotted key at `location`, without pydantic's names of a union's members."""
    node, kept = model, list[str]()
    for part in location:
        fields = node.model_fields
        if isinstance(part, int) or part in fields or (isinstance(data, dict) and part in data):
            kept.append(str(part))
            data = data.get(part) if isinstance(data, dict) else None
        if part in fields:
            node = _model_in(fields[str(part)].annotation) or node
    return ".".join(kept)


def _siblings(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the valid keys at the level of `location`."""
    node: Any = model
    for part in location[:-1]:
        field = node.model_fields.get(str(part)) if hasattr(node, "model_fields") else None
        if field is None:
            continue  # a key of a mapping, such as a modality
        node = _model_in(field.annotation) or node
    return list(node.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None


def _deep_copy(data: dict[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, dict) else value for key, value in data.items()}
