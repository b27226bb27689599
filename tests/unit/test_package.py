"""The package itself: quick import, a pinned public face, import order, the papers' parameter counts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import perceptune
from perceptune.config.recipe import load_recipe
from perceptune.config.registry import LEAF_KINDS
from perceptune.tools.list_components import entries
from perceptune.tools.summary import summarize

SOURCE = Path(perceptune.__file__).parent
WRITTEN = {".py", ".js", ".css", ".html"}
# Packages from the bottom to the top; a module imports from its own package and from those before it.
ORDER = (
    *("types", "errors", "_version", "utils", "config", "data", "encoders", "lm", "methods", "models", "evaluation"),
    *("training", "serving", "tools", "cli", "hf", "peft", "", "__main__"),
)


def test_the_public_face() -> None:
    face = "AdaptedModel Recipe Sample UserError __version__ build evaluate load load_ensemble load_recipe train"
    assert perceptune.__all__ == face.split()
    for name in perceptune.__all__:
        assert getattr(perceptune, name) is not None
    assert callable(perceptune.train)
    with pytest.raises(AttributeError, match="no attribute `trian`"):
        perceptune.trian  # noqa: B018


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import time, sys; start = time.perf_counter(); import perceptune; took = time.perf_counter() - start;"
        "print(took, [m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'PIL') if m in sys.modules])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    took, heavy = zip(*(run.split(" ", 1) for run in runs), strict=True)
    assert min(map(float, took)) < 0.3
    assert heavy[0].strip() == "[]"


@cache
def modules() -> dict[str, Path]:
    """File of each module by its dotted name below the package; the package itself is ``."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Each import of something of the package, wherever in the file: module, name in it, whether it is lazy."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "perceptune":
            module = (node.module or "").removeprefix("perceptune").removeprefix(".")
            for alias in node.names:
                inside = f"{module}.{alias.name}".strip(".")
                target = (inside, "") if inside in modules() else (module, alias.name)
                yield *target, node not in tree.body
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "perceptune":
                    yield alias.name.removeprefix("perceptune").removeprefix("."), "", node not in tree.body


def test_leaves_never_import_one_another() -> None:
    checked = 0
    for package in LEAF_KINDS.values():
        for path in SOURCE.joinpath(*package.split(".")).glob("*.py"):
            if path.stem in ("base", "__init__"):
                continue
            checked += 1
            for name, _, _ in imports(path):
                folder, _, inside = name.rpartition(".")
                if folder != package:
                    continue
                # What leaves share lies in files that begin with an underscore; leaves reach it through `base`.
                shared = path.stem.startswith("_") and inside.startswith("_")
                assert shared or inside == "base", f"{path.name} imports {name}"
    assert checked >= 12


def test_the_root_of_the_package_is_read_at_a_glance() -> None:
    entries = [path for path in SOURCE.iterdir() if path.name not in ("__pycache__", "recipes")]
    assert len([path for path in entries if path.is_dir()]) <= 12
    assert len([path for path in entries if path.is_file()]) <= 8


def test_imports_go_downwards() -> None:
    assert {name.split(".")[0] for name in modules()} == set(ORDER)
    for name, path in modules().items():
        for other, _, _ in imports(path):
            own, target = name.split(".")[0], other.split(".")[0]
            assert ORDER.index(target) <= ORDER.index(own) or "" in (own, target), f"{name} imports {other}"


def test_modules_import_one_another_in_no_circle() -> None:
    """Not even lazily, or for types alone."""
    graph = {name: {other for other, _, _ in imports(path)} - {""} for name, path in modules().items()}
    TopologicalSorter({name: graph[name] for name in graph if name}).prepare()


def test_no_private_name_is_imported_across_packages() -> None:
    for name, path in modules().items():
        for other, what, _ in imports(path):
            private = [part for part in (*other.split("."), what) if part.startswith("_") and part != "_version"]
            same = name.split(".")[: other.count(".")] == other.split(".")[:-1]
            assert not private or same, f"{name} imports {other} {what}"


@pytest.mark.parametrize(
    ("name", "trainable", "percent"),
    [
        ("paper/epalm", 24_949_760, 0.90),
        ("paper/epalm-pt", 15_106_560, 0.55),
        ("paper/epalm-lin", 1_968_640, 0.07),
        ("paper/epalm-ada", 6 * 1_968_640 + 105_041_920, 4.09),
        ("paper/epalm-pt-l", 4_239_360, 0.06),
    ],
)
def test_the_papers_parameter_counts(name: str, trainable: int, percent: float) -> None:
    shown = summarize(load_recipe(name))
    assert shown["trainable"] == trainable
    assert shown["share"] * 100 == pytest.approx(percent, abs=0.006)
    assert shown["total"] == sum(part["parameters"] for part in shown["parts"])
    injected = {site["layer"] for site in shown["sites"] if site["where"] == "slot `image`"}
    assert injected == set(range(19, 31))
    assert set(shown) >= {"trainable", "total", "share", "parts", "sites"}


@pytest.mark.parametrize(
    ("name", "trainable", "percent"), [("epalm", 24_949_760, 0.89), ("epalm-pt", 15_106_560, 0.54)]
)
def test_the_papers_parameter_counts_for_video(name: str, trainable: int, percent: float) -> None:
    shown = summarize(
        load_recipe(
            {
                "lm": "facebook/opt-2.7b",
                "encoders": {"video": "facebook/timesformer-base-finetuned-k600"},
                "method": {"name": name, "first": 19, "last": 30},
            }
        )
    )
    assert shown["trainable"] == trainable
    assert shown["share"] * 100 == pytest.approx(percent, abs=0.005)
    sizes = {part["what"]: part["parameters"] for part in shown["parts"]}
    assert sizes["facebook/timesformer-base-finetuned-k600"] == 121_258_752  # as published, without its classifier


def test_the_published_backbones_have_their_published_sizes() -> None:
    """Counts of the real checkpoints, tied embeddings once; the ViT without the pooler, which is not used."""
    shown = [summarize(load_recipe(f"paper/{name}")) for name in ("epalm", "epalm-pt-l", "epalm-350m")]
    parts = {part["what"].split(" ")[0]: part["parameters"] for one in shown for part in one["parts"]}
    assert parts["facebook/opt-2.7b"] == 2_651_596_800
    assert parts["facebook/opt-6.7b"] == 6_658_473_984
    assert parts["facebook/opt-350m"] == 331_196_416
    assert parts["google/vit-base-patch16-224"] == 85_798_656
    assert parts["google/vit-large-patch16-224"] == 303_301_632


@pytest.mark.parametrize("kind", ["methods", "qformer-methods", "encoders", "tasks", "metrics", "recipes"])
def test_lists_name_what_there_is(kind: str) -> None:
    names = [entry["name"] for entry in entries(kind)]
    expected = {
        "methods": {"epalm", "epalm-pt", "epalm-lin", "epalm-ada", "epalm-pt-l"},
        "qformer-methods": {"full", "head"},
        "encoders": {
            *("vit", "dinov2", "clip", "siglip", "staged", "timesformer", "videomae", "vivit"),
            *("ast", "whisper", "clap", "efficientat"),
        },
        "tasks": {"easy-vqa", "jsonl", "webdataset"},
        "metrics": {"exact", "caption", "rouge"},
        "recipes": {"demo", "paper/epalm", "paper/epalm-pt", "paper/epalm-lin", "paper/epalm-pt-l"},
    }
    assert expected[kind] <= set(names)
    assert all(entry["description"] for entry in entries(kind))


def test_files_stay_small() -> None:
    """Modules, and the files of the server's page."""
    lines = {p: len(p.read_text("utf-8").splitlines()) for p in SOURCE.rglob("*") if p.suffix in WRITTEN}
    assert {p.suffix for p in lines} == WRITTEN
    assert {str(p.relative_to(SOURCE)): n for p, n in lines.items() if n > 320} == {}


# Prompts of papers and of the demo, placeholders, models, libraries, gradient clipping, a setting in keys of caches.
OTHER_SENSES = (
    "in the picture?", "this picture?", '"Describe the ', '("sound", ', '"picture": self', "sounds right", "HEIC photo",
    "soundfile", "libsndfile", "CLIP", "Photoshop", "YouTubeClips", "clip_vision", '("clip"', "class Clip", "= Clip",
    "clip: float", ".clip(", "def clip(", "config.clip", "train.clip", "clip_grad", "clipping",
    "Picture|Image", "sound|speech", "clipboard", "clip-path", "Take a photo", "photo.jpg", "A photo of",
)  # fmt: skip


def test_media_are_called_image_audio_and_video() -> None:
    words = re.compile(r"(?i)picture|(?<![a-z])(sound|clip)s?(?![a-z])|photo")
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in SOURCE.rglob("*")
        if path.suffix in WRITTEN
        for number, line in enumerate([path.stem if path.stem != "clip" else "", *path.read_text().split("\n")])
        if words.search(line) and not any(sense in line for sense in OTHER_SENSES)
    ]
    assert not found
