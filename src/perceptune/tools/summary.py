"""Summary of a recipe or a run: parts, parameter counts, the trained fraction, every changed place in the LM."""

from pathlib import Path
from typing import Any

from perceptune.config.recipe import Recipe, load_recipe
from perceptune.methods.base import count, count_trained
from perceptune.models.build import build, dtypes_of, settle
from perceptune.models.run_folder import META, read_meta, read_recipe
from perceptune.utils.run_log import read_log


def recipe_of(source: str) -> Recipe:
    """Return the recipe of a run folder, a recipe file or a shipped recipe."""
    if (Path(source) / META).is_file():
        read_meta(Path(source))
        return read_recipe(Path(source))
    return load_recipe(source)


def stored_precision(source: str) -> dict[str, str] | None:
    """Return the dtypes a run was trained in, and why; None for a recipe, and for a run whose log has none."""
    starts = [row for row in read_log(Path(source)) if row.get("event") == "start"]
    return starts[0].get("precision") if starts else None


def summarize(recipe: Recipe) -> dict[str, Any]:
    """Count on the meta device: no weight is loaded, published configurations need no network.

    `trainable`, `total` and `share` = trainable / (LM + encoders + trainable), tied weights counted once; `parts`;
    `precision`, with the reason if it is chosen here; `sites`.
    """
    model = build(recipe, meta=True)
    settled, choice = settle(recipe)
    precision = {**dtypes_of(settled), **({"reason": choice.reason} if choice else {})}
    parts = [
        {"name": name, "what": part.what, "parameters": count(part.module, without=model.method), "trained": False}
        for name, part in model.frozen_parts().items()
    ] + [
        {"name": f"method.{name}", "what": type(child).__name__, "parameters": n, "trained": count_trained(child) > 0}
        for name, child in model.method.named_children() if (n := count(child))
    ]  # fmt: skip
    trainable, total = model.count_parameters()
    sites = [{"layer": site.layer, "where": site.where, "what": site.what} for site in model.method.sites()]
    return {
        "recipe": recipe.name, "method": recipe.method.name, "trainable": trainable, "total": total,
        "share": trainable / total, "parts": parts, **model.layer_info(), "precision": precision, "sites": sites,
    }  # fmt: skip
