"""A bench result as Markdown, for a person and for the documentation."""

from collections.abc import Iterator, Mapping
from typing import Any

from perceptune.utils.markdown import markdown_table

# Columns beside name and time: key of a row, heading, format.
FURTHER = (
    ("samples_per_s", "samples/s", "{:,.1f}"),
    ("matmul_gflops", "GFLOPS of matmul", "{:,.0f}"),
    ("achieved_gflops", "achieved", "{:,.0f}"),
    ("roofline_x", "roofline_x", "{:.3f}"),
    ("peak_memory_mb", "peak MB", "{:,.0f}"),
)


def lines(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Heading and cells of the rows, only with columns that some row fills."""
    rows = result["rows"]
    if any("meaning" in row for row in rows):  # a plan
        yield ["figure", "kind", "value", "meaning"]
        yield from ([row["name"], row["kind"], _figure(row["value"]), row["meaning"]] for row in rows)
        return
    used = [column for column in FURTHER if any(column[0] in row for row in rows)]
    yield ["row", "median ms", "least ms", *(heading for _, heading, _ in used)]
    for row in rows:
        further = [shape.format(row[key]) if key in row else "" for key, _, shape in used]
        yield [row["name"], f"{row['median_s'] * 1e3:,.2f}", f"{row['min_s'] * 1e3:,.2f}", *further]


def markdown(result: Mapping[str, Any]) -> str:
    """Ratios, rows and machine as Markdown tables."""
    text = markdown_table(["ratio", ""], [[f"`{name}`", f"{value:.2f}"] for name, value in result["ratios"].items()])
    heading, *rows = lines(result)
    text += ["", *markdown_table(heading, rows), ""]
    text += [", ".join(f"{key} {value}" for key, value in result["machine"].items())]
    return "\n".join(text) + "\n"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
