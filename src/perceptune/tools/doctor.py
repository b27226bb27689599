"""Checks of this machine, and estimates of a recipe's requirements."""

import os
import platform
import shutil
import timeit
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from perceptune.config.recipe import Recipe
from perceptune.errors import UserError

GIB = 2**30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def examine(recipe: str | None = None) -> list[dict[str, str]]:
    """Return checks as {name, state: ok | note | problem, found}."""
    checks = [*_versions(), _device(), _memory(), _cache(), *_assets()]
    return checks + _needs(recipe) if recipe else [*checks, *_precision()]


def _check(name: str, state: str, found: str) -> dict[str, str]:
    return {"name": name, "state": state, "found": found}


def _versions() -> list[dict[str, str]]:
    """Check Python and the installed packages against the package's own requirements."""
    try:
        python = metadata.metadata("perceptune")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return [_check("packages", "note", "not checked: perceptune is not installed here, only its source is used")]
    checks = [_fits("python", platform.python_version(), SpecifierSet(python))]
    for line in metadata.requires("perceptune") or ():
        wanted = Requirement(line)
        if wanted.marker is None:  # not of an extra
            checks.append(_fits(wanted.name, metadata.version(wanted.name), wanted.specifier))
    return checks


def _fits(name: str, found: str, wanted: SpecifierSet) -> dict[str, str]:
    state = "ok" if wanted.contains(found, prereleases=True) else "problem"
    return _check(name, state, f"{found} (required: {', '.join(sorted(map(str, wanted), reverse=True))})")


def _device() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        return _check("device", "ok", f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / GIB:.0f} GiB")
    speeds = ", ".join(f"{name} {_gflops(getattr(torch, name)):.0f} GFLOPS" for name in ("float32", "bfloat16"))
    return _check("device", "ok", f"CPU, {torch.get_num_threads()} threads, matrix products: {speeds}")


def total_memory() -> int | None:
    """Return the bytes of memory that this machine, or its container, has; None if unknown."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text(encoding="ascii").strip() if CGROUP_LIMIT.is_file() else "max"
    return min(total, int(limit)) if limit.isdecimal() else total


def _memory() -> dict[str, str]:
    total = total_memory()
    if total is None:
        return _check("memory", "note", "cannot be read on this system")
    return _check("memory", "ok" if total > 4 * GIB else "note", f"{total / GIB:.1f} GiB")


def _cache() -> dict[str, str]:
    from perceptune.utils.downloads import cache_dir

    folder = cache_dir()
    existing = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))  # raises nothing
    free = shutil.disk_usage(existing).free
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        return _check("cache", "problem", f"{folder} cannot be written; set PERCEPTUNE_CACHE")
    state = "ok" if free > 2 * GIB else "problem"
    return _check("cache", state, f"{folder}, {free / GIB:.0f} GiB free (the default models take 0.8 GiB)")


def _assets() -> list[dict[str, str]]:
    from perceptune.utils.assets import ASSETS
    from perceptune.utils.downloads import present

    found = {name: present(name) for name in ASSETS}
    lacking = "not fetched yet: perceptune assets "
    return [_check(name, "ok" if place else "note", str(place or lacking + name)) for name, place in found.items()]


def _precision(recipe: Recipe | None = None) -> list[dict[str, str]]:
    """Report the dtype of `auto` for a recipe's LM, by default the default one if it is installed."""
    from perceptune.config.recipe import load_recipe
    from perceptune.models.build import choose_dtype, slower_here
    from perceptune.models.pretrained import DEFAULT_LM
    from perceptune.utils.downloads import present

    if recipe is None and not present(DEFAULT_LM):
        return [_check("precision", "note", "not measured: the default LM is not fetched yet")]
    recipe = recipe or load_recipe({})
    choice = choose_dtype(recipe)
    checks = [_check("precision", "ok", f"`auto` is {choice.dtype}: {choice.reason}")]
    slower = slower_here(recipe, choice)
    return [*checks, _check("precision", "note", slower)] if slower else checks


def _needs(source: str) -> list[dict[str, str]]:
    """Estimate memory, time and disk of a training, from parameter counts and this machine's speed; rough by nature."""
    import torch

    from perceptune.data.build_task import make_task
    from perceptune.models.build import settle
    from perceptune.tools.summary import recipe_of, summarize
    from perceptune.training.sampler import planned_length

    recipe = recipe_of(source)
    shown = summarize(recipe)
    frozen = {part["name"]: part["parameters"] for part in shown["parts"] if not part["trained"]}
    low = settle(recipe)[0].train.precision == "bfloat16"
    weights = frozen["lm"] * (2 if low else 4) + 4 * (sum(frozen.values()) - frozen["lm"])
    trained = 16 * shown["trainable"]  # value, gradient and two Adam moments in float32
    memory = f"about {(weights + trained) / GIB:.1f} GiB for weights and optimizer, plus activations"
    checks = [
        *_precision(recipe),
        _check("recipe", "ok", f"{recipe.name}: trains {shown['trainable']:,} of {shown['total']:,} parameters"),
        _check("needs memory", "note", memory),
        _check("needs disk", "note", f"about {20 * shown['trainable'] / GIB:.2f} GiB in the run folder"),
    ]  # fmt: skip
    try:
        task = make_task(recipe)
        rows = task.samples(task.splits[0])
    except UserError as error:
        return [*checks, _check("data", "problem", str(error))]
    tokens = 32  # a short question with its answer, prompt and slots
    steps, samples = planned_length(recipe.train, len(rows), tokens, recipe.seed)
    upper = 1 - shown["first_layer"] / shown["lm_layers"]
    flops = 4 * frozen["lm"] * upper * tokens * samples  # forward, and backward to the activations only
    media = len({medium for row in rows for _, medium in row.iter_media()})
    flops += 2 * (sum(frozen.values()) - frozen["lm"]) * 200 * min(media, samples)  # each is encoded once
    seconds = flops / (_gflops(torch.bfloat16 if low else torch.float32) * 1e9) * 2  # assumes half of the peak speed
    duration = f"about {max(seconds / 60, 0.1):.1f} minutes for {steps} steps on this machine"
    return [*checks, _check("data", "ok", f"{len(rows)} training samples"), _check("needs time", "note", duration)]


def _gflops(dtype: Any) -> float:
    """Measure the speed of a matrix product as large as a small LM's, best of five."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(512, 1024, dtype=dtype, device=device), torch.randn(1024, 1024, dtype=dtype, device=device)
    best = min(timeit.repeat(lambda: float((a @ b)[0, 0]), number=1, repeat=6))  # reading a value synchronises
    return float(2 * 512 * 1024 * 1024 / best / 1e9)
