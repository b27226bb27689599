"""The site: every page has one place in its navigation, and every link leads to a file that the site has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import pages


def test_every_page_is_in_the_navigation_once() -> None:
    listed = Counter(pages.navigation())
    assert [page for page, times in listed.items() if times > 1] == []
    written = {file.relative_to(pages.DOCS).as_posix() for file in pages.DOCS.rglob("*.md")}
    assert written - set(listed) == set(), "pages without a place in `nav` of zensical.toml"
    assert [page for page in listed if not pages.original(page).is_file()] == []


def test_a_site_begins_with_its_front_page() -> None:
    assert next(pages.navigation()) == "index.md"


def test_links_fit_the_site(tmp_path: Path) -> None:
    pages.write(tmp_path)
    assert (tmp_path / "studies/README.md").is_file()
    assert "](studies/README.md)" in (tmp_path / "findings.md").read_text(encoding="utf-8")
    assert "](../compare.md)" in (tmp_path / "studies/README.md").read_text(encoding="utf-8")
    for page in tmp_path.rglob("*.md"):
        for target in pages.links(page):
            assert target.is_relative_to(tmp_path.resolve()), f"{page.name}: {target}"
            assert target.is_file(), f"{page.name}: {target}"


def test_writing_leaves_no_old_page(tmp_path: Path) -> None:
    (tmp_path / "removed.md").write_text("# Removed\n", encoding="utf-8")
    pages.write(tmp_path)
    assert not (tmp_path / "removed.md").exists()


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "DOCS", tmp_path / "docs")
    monkeypatch.setitem(pages.PROJECT, "nav", [{"Start": [{"Front": "index.md"}]}])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Front\n\n[more](../gone.md#part)\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"gone\.md"):
        pages.collect()


def test_the_site_asks_no_other_host() -> None:
    assert pages.PROJECT["theme"]["font"] is False
    assert not any("http" in str(entry) for entry in pages.PROJECT.get("extra_javascript", []))


def test_no_page_is_left_out_of_the_sidebar() -> None:
    """With this feature, every index.md and README.md stands for its section and is no longer listed."""
    assert "navigation.indexes" not in pages.PROJECT["theme"]["features"]
