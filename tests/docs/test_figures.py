"""Every figure of the front page's table and of the findings is one of the studies' results, or a dated note's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Dated notes, and the table of easy-VQA, whose runs left no results among the studies.
NOTES = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("docs/log.md", "docs/compare.md"))
FIGURE = re.compile(r"(?<![\w.^-])[+-]?\d[\d,]*(?:\.\d+)?")
# Section of the findings -> the studies it is about.
SECTIONS = {
    "Overview": ("captions-*", "questions-*", "levels", "sounds"),
    "A captioning model after twenty minutes": ("flagship*",),
    "Late injection": ("captions-*", "questions-*", "rooms", "decoding", "levels", "prompts"),
    "The leak": ("leak-*",),
    "Settings": ("levels", "prompts", "decoding", "data", "compute", "unfreezing", "resolution", "captions-gemma"),
    "Audio, video, other data": ("sounds", "masking", "clips*", "out-of-distribution", "zero-shot"),
    "PETAL": ("petal-*",),
    "A mistake of ours": ("questions-*",),
    "Errors": ("limits",),
    "Recommendations": (),
    "Limits": ("flagship-ranks",),
}
# Numbers of samples, and the one score of a study that was repeated since and whose result is gone.
NO_RESULTS = {"1,500", "1,024", "4,275", "1,400", "10.2"}
# Figures of dev splits, of easy-VQA and of studies that were repeated since.
NOTED = {
    *("16.4", "18.1", "23.7", "23.8", "24.7", "26.9", "54.7", "62.6", "67.6", "67.8"),
    *("69.1", "69.4", "69.9", "71.7", "72.3"),
}  # fmt: skip
NOT_SHOWN = {"setting", "settings", "validation", "definition", "decoding", "run_seconds", "train_seconds", "share"}
DIFFERENCES = {"26.8": ("questions-epalm", "epalm-pt", "epalm-lin")}
# Beginning of a row of a table -> its label in the results.
LABELS = {"PromptFuse": "promptfuse", "MAGMA": "magma", "LoRA": "lora", "LimBEr": "limber", "the whole LM": "full",
          "PETAL": "petal", "full fine-tuning": "full", "the head alone": "head", "LLaMA-Adapter": "llama-adapter",
          "MaPLe": "maple"}  # fmt: skip
FRONT = {  # data and method of a row on the front page -> study and label, and where its controls are
    ("captions", "recipe `captions`"): ("flagship-rank-2", "beams-3", "flagship-rank-2"),
    ("captions", "`captions`, LoRA of rank 16"): ("flagship", "beams-3", "flagship"),
    ("questions on photos", "`epalm`"): ("questions-epalm", "epalm", "decoding"),
    ("questions on photos", "MAGMA"): ("questions-magma", "magma", ""),
    ("questions on photos", "LoRA"): ("questions-lora", "lora", ""),
    ("questions on photos", "full fine-tuning"): ("questions-full", "full", ""),
    ("questions on rooms", "`epalm`"): ("rooms", "epalm", ""),
    ("questions on rooms", "MAGMA"): ("rooms", "magma", ""),
    ("questions on rooms", "LoRA"): ("rooms", "lora", ""),
}
# Rows of `flagship-ranks`, where the parameters of two evaluated runs are counted.
RANKS = {"flagship": "rank-16", "flagship-rank-2": "rank-2"}


@cache
def tables(pattern: str) -> tuple[dict[str, Any], ...]:
    """Return the tables of all studies whose names fit."""
    paths = sorted((ROOT / "studies/results").glob(f"{pattern}.json"))
    assert paths, pattern
    return tuple(table for path in paths for table in json.loads(path.read_text(encoding="utf-8"))["tables"])


def rows_of(pattern: str, label: str) -> list[dict[str, Any]]:
    return [row for table in tables(pattern) for row in table["rows"] if row["label"] == label]


def numbers(value: Any) -> Iterator[float]:
    """Yield every number inside a JSON value, without settings and times."""
    if isinstance(value, dict):
        value = [inside for key, inside in value.items() if key not in NOT_SHOWN]
    if isinstance(value, list | tuple):
        for inside in value:
            yield from numbers(inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def is_shown(figure: str, values: Iterable[float]) -> bool:
    """Return whether one of the values, or a hundred times it, is `figure` when it is rounded alike."""
    plain = figure.replace(",", "")
    unit = 10.0 ** -len(plain.partition(".")[2])
    return any(abs(abs(scale * value) - abs(float(plain))) <= 0.5001 * unit for value in values for scale in (1, 100))


def figures(text: str) -> list[str]:
    """Return the numbers of a passage with a decimal point, and those of thousands; learning rates are left out."""
    bare = re.sub(r"`[^`]*`|\]\([^)]*\)|\d[\d.]*e-\d+", " ", text)
    found = [figure.rstrip(",") for figure in FIGURE.findall(bare)]
    return [figure for figure in found if "." in figure or "," in figure]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def is_noted(figure: str) -> bool:
    """Return whether the dated notes have a figure, in per cent or as a fraction."""
    forms = {figure, f"{float(figure.replace(',', '')) / 100:.3f}"}
    return any(re.search(rf"(?<![\d.,]){re.escape(form)}(?![\d]|\.\d)", NOTES) for form in forms)


def test_the_front_page_shows_the_results() -> None:
    """Share, score, interval and controls of each row are those of its study."""
    text = sections("README.md")["Results"]
    data, seen = "", set()
    for line in [line for line in text.splitlines() if line.startswith("| ")][1:]:
        task, method, share, score, *controls = cells(line)
        data = task or data
        name = next(key for key in FRONT if data.startswith(key[0]) and method == key[1])
        seen.add(name)
        study, label, controlled = FRONT[name]
        assert all(is_shown(figure, numbers(rows_of(study, label))) for figure in figures(score)), line
        counted = rows_of("flagship-ranks", RANKS[study]) if study in RANKS else rows_of(study, label)
        digits = len(share.removesuffix(" %").partition(".")[2])
        assert {f"{100 * row['share']:.{digits}f} %" for row in counted} == {share}, line
        given = [figure for control in controls for figure in figures(control)]
        assert not given or all(is_shown(figure, numbers(tables(controlled))) for figure in given), line
        if prior := re.search(r"question alone ([\d.]+)", task):
            assert is_shown(prior[1], [table["prior"]["value"] for table in tables(study)]), line
    assert seen == set(FRONT)


def test_the_demo_on_the_front_page_is_noted() -> None:
    """Its scores and times are those of the dated notes: 10.6 minutes are 10 min 36 s there."""
    told = set(figures(sections("README.md")["Two commands"])) - {"10.6", "2,000"}
    assert {"0.989", "0.712"} <= told
    assert [figure for figure in told if not is_noted(figure)] == []


@pytest.mark.parametrize("section", SECTIONS)
def test_figures_of_the_findings_are_results(section: str) -> None:
    """Each is a number of a study that its section is about, or of a dated note."""
    values = [value for pattern in SECTIONS[section] for value in numbers(tables(pattern))]
    for figure in figures(sections("docs/findings.md")[section]):
        if figure in DIFFERENCES:
            study, first, second = DIFFERENCES[figure]
            [one], [other] = rows_of(study, first), rows_of(study, second)
            assert is_shown(figure, [one["accuracy"] - other["accuracy"]])
        elif figure not in NO_RESULTS:
            assert is_noted(figure) if figure in NOTED else is_shown(figure, values), figure


# Table -> studies of its columns, in pairs of value and, if it has one, difference.
TABLES = {"Late injection": ("captions-full", "questions-magma"), "PETAL": ("petal-captions", "petal-questions")}


@pytest.mark.parametrize("section", TABLES)
def test_rows_of_the_findings_are_rows_of_the_results(section: str) -> None:
    checked = 0
    for line in sections("docs/findings.md")[section].splitlines():
        name, trained, *values = cells(line) if line.startswith("| ") else ("", "")
        named = re.match(r"`([\w-]+)`(?! with)", name)
        label = named[1] if named else next((LABELS[key] for key in LABELS if name.startswith(key)), None)
        if label is None:
            continue
        width = len(values) // 2
        for study, told in zip(TABLES[section], (values[:width], values[width:]), strict=True):
            [row] = rows_of("questions-full" if "two seeds" in told[0] else study, label)
            assert figures(trained) == [f"{row['trained']:,}"], line
            assert re.sub(r"[*↑↓ ]|\(two seeds\)", "", told[0]) == value_of(row).replace(" ", ""), line
            if width > 1 and told[1]:
                assert told[1].replace("*", "") == difference_of(row), line
        checked += 1
    assert checked >= 6


def difference_of(row: dict[str, Any]) -> str:
    """Return the difference to the first row and its interval as a page shows them."""
    low, high = row["difference_interval"]
    return f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def value_of(row: dict[str, Any]) -> str:
    """Return mean and deviation of a row as a page shows them."""
    metric = row["CIDEr"] if "CIDEr" in row else row["accuracy"]
    return f"{100 * metric:.1f} ± {100 * row['spread']:.1f}"


def test_every_section_of_the_findings_is_compared() -> None:
    assert set(sections("docs/findings.md")) == set(SECTIONS)


def test_rows_of_petals_baselines_are_rows_of_the_results() -> None:
    """Parameters, and on both data sets mean, deviation, interval and difference, of the comparison or the ablation."""
    checked = 0
    for line in sections("docs/petal_baselines.md")["On a small InstructBLIP"].splitlines():
        name, trained, *values = cells(line) if line.startswith("| ") else ("", "")
        label = re.match(r"(V[1-4])|`([\w-]+)`", name)
        if label is None or len(values) < 7:
            continue
        for data, told in (("captions", values[1:4]), ("questions", values[4:])):
            [row] = rows_of(f"petal-{data}" + ("-ablation" if label[1] else ""), label[1] or label[2])
            low, high = row["interval"]
            assert trained == f"{row['trained']:,}", line
            assert told[:2] == [told[0], f"{100 * low:.1f} to {100 * high:.1f}"], line
            assert re.sub(r"[ ↑↓]", "", told[0]) == value_of(row).replace(" ", ""), line
            assert told[2] in ("", difference_of(row)), line
        checked += 1
    assert checked == 10


def test_figures_of_audio_are_those_of_its_study() -> None:
    found = json.loads((ROOT / "studies/hearing.json").read_text(encoding="utf-8"))
    lines = (ROOT / "docs/audio.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = {row[0]: row[1:] for row in cells}
    for label, encoder in (("Whisper base (`default`)", "whisper"), ("EfficientAT mn04", "efficientat"),
                           ("spectrogram image for DINOv2-S", "picture")):  # fmt: skip
        shown = []
        for name in ("esc50", "fsdd"):
            runs = [found[f"test {name} {encoder} {seed}"] for seed in range(3)]
            generated, shuffled, ranked = (
                f"{100 * mean(run[key] for run in runs):.1f}" for key in ("accuracy", "accuracy shuffled", "ranked")
            )
            shown += [f"{generated} ({shuffled})", ranked]
        assert rows[label] == shown
