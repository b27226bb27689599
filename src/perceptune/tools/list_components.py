"""Names that a recipe or the command line accepts, with one line on each."""

from typing import Any, get_args

from perceptune.config.recipe import recipe_names, recipes_dir
from perceptune.config.registry import LEAF_KINDS, leaves


def kinds() -> list[str]:
    """Return the kinds that can be listed."""
    return [*(kind.replace("_", "-") for kind in LEAF_KINDS), "recipes"]


def entries(kind: str) -> list[dict[str, Any]]:
    """Return name and description of every leaf of a kind, or of every shipped recipe."""
    if kind == "recipes":
        return [{"name": name, "description": _first_comment(name)} for name in recipe_names()]
    found = []
    for name, leaf in leaves(kind.replace("-", "_")).items():
        summary = " ".join((leaf.module.__doc__ or "").partition("\n\n")[0].split())
        entry: dict[str, Any] = {"name": name, "description": summary}
        if leaf.defaults:
            settings = ", ".join(f"{key}: {value}" for key, value in leaf.defaults.items())
            entry["description"] = f"{summary.split(':')[0].rstrip('.')}, with {settings}"
        if formula := getattr(leaf.module, "COUNTS", {}).get(name):
            entry["trained"] = formula
        if kind == "encoders":
            entry["model_types"] = [*leaf.module.MODEL_TYPES]
        if kind == "metrics" and (dialect := leaf.module.Options.model_fields.get("dialect")):
            entry["dialects"] = [*get_args(dialect.annotation)]
            entry["description"] += f" Dialects: {', '.join(entry['dialects'])}."
        found.append(entry)
    return found


def _first_comment(name: str) -> str:
    first = (recipes_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("# ") if first.startswith("#") else ""
