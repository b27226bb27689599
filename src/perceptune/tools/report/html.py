"""A report as one HTML file: no script, no external resources, every text escaped, light and dark."""

import re
from pathlib import Path

from markupsafe import Markup, escape

from perceptune.tools.report.blocks import Report, verdict
from perceptune.utils.templates import render

_LIGHT = ("#0b62b0", "#b35000", "#1a7f4b", "#8250df", "#c4342d", "#9a6700", "#0e7490", "#bf3989")
_DARK = ("#6cb6ff", "#f0a35e", "#57c98a", "#c8a2ff", "#ff8f87", "#e3c04f", "#56d4e8", "#ff9bce")


def html(report: Report) -> str:
    """Return the whole file."""
    return render(
        Path(__file__).with_name("page.html"), report=report, light=_LIGHT, dark=_DARK, coded=_coded, verdict=verdict,
        kind_of=lambda block: type(block).__name__,
    )  # fmt: skip


def _coded(text: str) -> Markup:
    """Return a paragraph's text, with text between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text)))
