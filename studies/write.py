"""Writes `studies/README.md` and its pictures from the results, the published figures and the readings.

python studies/write.py            writes them
python studies/write.py --check    says whether they are what it would write
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import planning
from drawing import drawing_of
from perceptune.evaluation.results import gap_name
from perceptune.tools.compare.plan import setting_name
from perceptune.utils.templates import render
from planning import STUDIES
from verdicts import FOUNDED, difference, edge, load_readings, t_interval

PAPERS = {"epalm": "eP-ALM", "petal": "PETAL"}


def main(check: bool) -> int:
    written = pages(STUDIES)
    if check:
        stale = [path for path, text in written.items() if not path.is_file() or path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path.relative_to(STUDIES)} is out of date: python studies/write.py")
        return 1 if stale else 0
    for old in (STUDIES / "pictures").glob("*.svg"):
        old.unlink()
    for path, text in written.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(written)} files, the page is studies/README.md")
    return 0


def pages(folder: Path) -> dict[Path, str]:
    """Every file and what it holds, from what lies in the folder of the studies."""
    plan = planning.load_plan(folder / "plan.yaml")
    published = yaml.safe_load((folder / "published.yaml").read_text(encoding="utf-8"))
    readings = load_readings(folder / "readings.yaml", plan)
    made: dict[Path, str] = {}
    shown: set[str] = set()
    parts = []
    for part in plan.parts:
        path = folder / "results" / f"{part.name}.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        pictures = [drawing_of(table) for table in result["tables"]] if result else []
        made |= {folder / "pictures" / f"{part.name}-{i}.svg": drawn.text for i, drawn in enumerate(pictures) if drawn}
        tables = [published["tables"][name] | {"name": name} for name in part.published if name not in shown]
        parts.append((part, result, pictures, tables, [name for name in part.published if name in shown]))
        shown.update(part.published)
    text = render(
        Path(__file__).with_name("page.md.j2"), plan=plan, note=published["note"], listing=planning.listing(plan),
        parts=parts, reading=lambda part, result: _reading(readings.get(part.name), result), control=_control,
        seed_by_seed=_seed_by_seed, setting=_setting, papers=_papers, percent=_percent, span=_span,
    )  # fmt: skip
    made[folder / "README.md"] = text.rstrip("\n") + "\n"
    return made


def _reading(reading: Mapping[str, Any] | None, result: Mapping[str, Any] | None) -> str:
    """Return the verdict, the difference on which it rests, and the text."""
    if reading is None:
        return "*Not read yet.*"
    evidence = ""
    if result is not None and reading["verdict"] in FOUNDED and "rows" in reading:
        ahead, behind = reading["rows"]
        found = difference(result, ahead, behind)
        spans = f"{_span(found.seeds)} over seeds, {_span(found.media)} over media"
        evidence = f" `{ahead}` is ahead of `{behind}` by {_percent(found.value)} ({spans})."
    return f"**{reading['verdict'].capitalize()}.**{evidence} {reading['text'].strip()}"


def _setting(row: Mapping[str, Any]) -> str:
    """The chosen setting, and whether it ends the grid: a better one may lie beyond."""
    end = edge(row)
    return setting_name(row["setting"]) + (f" ({end} of {len(row['validation'])})" if end else "")


def _seed_by_seed(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """The difference to the first row in each seed, with the t interval of its mean from three on."""
    if row is first or len(row["by_seed"]) < 2:
        return ""
    values = [value - first["by_seed"][seed] for seed, value in row["by_seed"].items()]
    span = f" ({_span(t_interval(values), '+')})" if len(values) > 2 else ""
    return ", ".join(_percent(value, "+") for value in values) + span


def _control(values: Mapping[str, Any], metric: str, name: str) -> str:
    """A value without the right media, and how far seeing beats it."""
    if f"{metric}_{name}" not in values:
        return ""
    gap = gap_name(metric, name)
    beaten = f"; {_percent(values[gap], '+')} ({_span(values.get(f'{gap}_interval'), '+')})" if gap in values else ""
    return _percent(values[f"{metric}_{name}"]) + beaten


def _papers(names: Iterable[str], between: str = ", ") -> str:
    """`epalm-table-1` -> `eP-ALM, Table 1`."""
    parts = [name.split("-", 1) for name in names]
    return between.join(f"{PAPERS[paper]}, {which.replace('-', ' ').capitalize()}" for paper, which in parts)


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.1f}"


def _span(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{_percent(interval[0], sign)} to {_percent(interval[1], sign)}"


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
