"""Tables and intervals as text."""

import re
from collections.abc import Iterable, Sequence


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Its lines; the cells are taken as they are."""
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]


def escape_markdown(text: str) -> str:
    """Return one line that no reader takes for markup or HTML."""
    words = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]!#~$])", r"\\\1", words)


def format_interval(interval: Sequence[float] | None, sign: str = "") -> str:
    """Return `low to high`, each with its sign if `sign` is `+`; nothing without an interval."""
    return "" if interval is None else f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"
