"""Pictures of the tables, as SVG files that stand alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import planning
from perceptune.tools.plots.layout import Mark
from perceptune.tools.report.charts import Bar, bars, trade_off

# The classes of `perceptune.tools.report.charts`; a page's style is not there in a file of its own.
STYLE = (
    "svg{background:#fff;font:14px sans-serif}text{fill:#1f2328}.faint{fill:#59636e}.axis{stroke:#59636e}"
    ".rule{stroke:#d8dee4}.span{stroke:#8fb8de;stroke-width:2}.whisker{stroke:#1f2328}.blind{stroke:#c4342d;stroke-width:2}"
    ".s0{fill:#0b62b0}polyline{fill:none}"
)
SPREAD = 3.0  # most over least trained from which parameters are worth an axis


class Drawing(NamedTuple):
    """A picture and what it shows."""

    text: str
    alt: str


def drawing_of(table: Mapping[str, Any]) -> Drawing | None:
    """Values over trained parameters where rows differ in them, else bars; None for what has nothing to compare."""
    if len(table["rows"]) < 2 or table["kind"] not in ("compare", "eval", "figures"):
        return None
    rows = table["rows"]
    if table["kind"] == "compare":
        metric, trained = table["metric"], [row["trained"] for row in rows]
        if max(trained) > SPREAD * min(trained):
            marks = [Mark(row["label"], row["trained"], 100 * row[metric], _interval(row["interval"])) for row in rows]
            return _alone(trade_off(marks, metric))
        found = [(row["label"], row[metric], row["interval"]) for row in rows]
    elif table["kind"] == "figures":
        metric, found = "%", [(row["label"], row["value"], row["interval"]) for row in rows if row["value"] is not None]
    else:
        metric = planning.headline(rows[0]["metrics"])
        values = {row["label"]: row["values"] for row in rows if metric in row["values"]}
        found = [(label, one[metric], one.get(f"{metric}_interval")) for label, one in values.items()]
        if len(found) < 2:
            return None
    return _alone(bars([Bar(label, 100 * value, _interval(span)) for label, value, span in found], metric))


def _interval(given: Any) -> tuple[float, float] | None:
    return None if given is None else (100 * given[0], 100 * given[1])


def _alone(chart: Any) -> Drawing:
    head, rest = chart.svg.split(">", 1)
    return Drawing(f"{head}><style>{STYLE}</style>{rest}\n", chart.alt)
