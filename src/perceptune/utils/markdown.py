"""Formatting of Markdown tables and intervals."""

import re
from collections.abc import Iterable, Sequence


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; cells are not escaped."""
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]


def escape_markdown(text: str) -> str:
    """Return the text as one line with Markdown and HTML escaped."""
    words = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]!#~$])", r"\\\1", words)


def format_interval(interval: Sequence[float] | None, sign: str = "") -> str:
    """Return `low to high`, each with its sign if `sign` is `+`; nothing without an interval."""
    return "" if interval is None else f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"
