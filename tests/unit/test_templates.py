"""Templates of pages: every value is text, and a name without a value is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from perceptune.utils.templates import render


def test_values_are_escaped_and_missing_ones_are_errors(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<a title="{{ title }}">{% for one in rows %}{{ one.name }}{% endfor %}</a>')
    written = render(page, title='"><script>', rows=[{"name": "<b>&"}])
    assert written == '<a title="&#34;&gt;&lt;script&gt;">&lt;b&gt;&amp;</a>'
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render(page, rows=[])
    with pytest.raises(jinja2.UndefinedError, match="name"):
        render(page, title="", rows=[{}])
