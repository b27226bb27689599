"""The package itself: quick import, a pinned public face, import order, the papers' parameter counts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import perceptune
from perceptune.config import load_recipe
from perceptune.listing import entries
from perceptune.show import describe

SOURCE = Path(perceptune.__file__).parent
WRITTEN = {".py", ".js", ".css", ".html"}
LEAF_FOLDERS = ("encoders", "methods", "qformer_methods", "metrics", "tasks")


def test_the_public_face() -> None:
    face = "AdaptedModel Recipe Sample UserError __version__ build evaluate load load_recipe train"
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


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("perceptune"):
            module = node.module.removeprefix("perceptune").removeprefix(".")
            found |= {module} if module else {alias.name for alias in node.names}
    return found


def test_leaves_never_import_one_another() -> None:
    checked = 0
    for folder in LEAF_FOLDERS:
        for path in (SOURCE / folder).glob("*.py"):
            if path.stem in ("base", "__init__"):
                continue
            checked += 1
            for name in imports(path):
                inside = name.split(".")
                if inside[0] != folder:
                    continue
                # What leaves share lies in files that begin with an underscore; leaves reach it through `base`.
                shared = path.stem.startswith("_") and inside[1].startswith("_")
                assert shared or inside == [folder, "base"], f"{path.name} imports {name}"
    assert checked >= 12


LAYERS = [
    {"devices", "tiny"},
    {
        *("errors", "_version", "types", "statistics", "atomic", "trained", "information", "tables", "allocation"),
        *("sniffing", "depth", "pngtexts", "paths", "suffixes"),
    },
    {
        *("plugins", "assets", "assets_convert", "storage", "media", "sound", "mel", "video", "pictures", "config"),
        *("guard", "runlog", "prefetch", "shards", "sections", "sections_commands", "quantized", "freezing", "scatter"),
        *("peft", "sources", "rand_augment", "torch_files", "model_folders", "substitution", "locking", "launch"),
        *("heat", "trackers", "origin", "animation", "overrides"),
    },
    {
        *("splice", "blocks", "order", "listing", "text", "anatomy", "keyvalues", "head", "packed", "norms"),
        *("attention", "lazy", "records", "tar", "choosing", "tabular"),
    },
    {"split", "places"},
    {"lm", "generation", "beams", "prefill", "uncached", "stepping", "trial", "store", "ranking", "blip"},
    {"sharding", "lighter", "precision", "row_cache"},
    {"encoders", "methods", "qformer_methods", "metrics", "tasks"},
    {"loading", "optimizer", "holdout", "scoring", "blip_text"},
    {"features"},
    {"textstates", "live", "naming"},
    {"model"},
    {"spliced", "blip_model", "likelihood", "trainset", "gradients"},
    {"distributed"},
    {"building", "blip_loading"},
    {"checkpoint", "judging", "controls"},
    {"results", "card", "proof"},
    {"evaluation", "show", "looking", "resume", "feed", "official", "official_config", "encoder_import", "initial"},
    {"heldout", "stored", "predicting"},
    {"training", "doctor", "caching", "blip_making"},
    {"demo", "bench", "compare", "lmms_eval", "data", "reporting", "sharing", "serving", "gpu_check", "gpu_trials"},
    {"cli"},
    {"", "__main__"},
]


def test_imports_go_downwards() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).with_suffix("").parts[0].replace("__init__", "")
        assert own in level, f"{path.name} has no place in the order"
        for name in imports(path):
            other = name.split(".")[0]
            allowed = level[other] <= level[own] or (own, other) == ("", "")
            assert allowed, f"{path.relative_to(SOURCE)} imports {name}"


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
    shown = describe(load_recipe(name))
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
    shown = describe(
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
    shown = [describe(load_recipe(f"paper/{name}")) for name in ("epalm", "epalm-pt-l", "epalm-350m")]
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
