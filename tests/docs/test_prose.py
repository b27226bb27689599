"""The pages name files that exist and today's API; the glossary has its terms, the front page its length."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from perceptune.cli.main import parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
# Dated notes: they speak of the code as it was.
DATED = {"log.md", "CHANGELOG.md"}
TERMS = (
    *("[CLS] extraction", "slot injection", "soft prompt", "LoRA", "split execution", "feature cache", "CIDEr"),
    *("beam search", "continuous batching", "resume"),
)
# Names of the API before they were the field's, as patterns that prose and the API of other libraries do not match.
OLD_NAMES = re.compile(
    r"""
      \.said\b | \bdef\ (said|known|ensure|prepare|depth|using|entrance|chooses)\(self | \.(known|ensure|using)\(
    | \b(SplicedModel | BlipModel | get_ready | one_by_one | with_transformers | through_transformers | up_to\()
    | \bclass\ (Watch|Row|Going|Pair|Trained|Seen|Queried|Answered|Judged|Loaded|Memory|Together|Apart|Feed|Say)\b
    | \b(Going | Prefilled | Grown | KeyValues | Choose | Queried | HeldOut | HoldOut | TakenOver
        | Answered)(?=[\[(\]),.`|])
    | \bJudged\b(?!\ by) | \bFeed\b(?=[(.\]`]) | \b(chooser | likeliest)\( | \.asked\( | \.taught\(
    | (?<!pre_tokenizers\.)\bSplit\( | \b_tell\b | \b_together\( | \bSplice\.(enter|open)\b | \bwith_slots\b
    | \b(why_plain | no_split | states_at | states_before_head | lighten\w* | text_side | unfrozen_side | take_over)\b
    | \bdef\ plan\(self,\ features | \bspeaks(?=:|\(\)|\ =) | (?<!self\.)\bjudge\(
    | \b(require_judgeable | pick_samples)\b
    | \b(training_of | data_of\b | _asked_again | prove\(|stand_in\(|made_up\()
    | \b(share_bad | everyones | end_at_once)\b
    | \bdef\ (deal|collect|alike|agree|contact|divide|set_rates|pack|unpack|settle|gone|numbers|transfer)\(self
    | \b(SaidElsewhereError | DataOrder | TokenOrder | WeightedDraws | view_draw | set_rates | _Lent)\b
    | \btold\.lines\b
    | \btell= | "anew" | \b(spliced | keyvalues | textstates | prefill | stepping | choosing | judging | lighter)\.py\b
    """,
    re.VERBOSE,
)

# Packages whose docstrings begin with a verb and are free of these phrases.
PLAIN = ("types.py", "errors.py", "utils", "config", "encoders", "evaluation", "data")
PHRASES = re.compile(r"\b(so many|anew|is no (?!longer|such)|whoever|nobody|somebody|takes? notice)\b", re.IGNORECASE)
NO_VERB = re.compile(
    r"""
      \W* (The|A|An|All|As|At|By|For|From|How|In|Its?|Itself|None|Of|Same|That|Their|This|Those|What|When|Where|Which
        |Who|Whose|With|Without)\b
    | \W* [A-Z]\w*[^s]s\b | \(
    """,
    re.VERBOSE,
)


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def rows_of(page: str) -> list[list[str]]:
    """Cells of every row of a page's tables, headings and rules aside."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0] != "term"]


def test_the_glossary_has_the_terms_of_the_field() -> None:
    rows = rows_of("docs/concepts.md")
    assert set(TERMS) <= {row[0] for row in rows}
    for term, meaning, where in rows:
        assert 1 <= len(re.findall(r"\.(?= |$)", meaning)) <= 2, f"{term}: one or two sentences"
        files = re.findall(r"`(src/perceptune/[^`]+)`", where)
        assert files, term
        for file in files:
            assert (ROOT / file).exists(), f"{term}: {file} is not there"


def named_files(page: Path) -> Iterator[str]:
    """Paths in code type that begin with a folder of the repository or of the package."""
    package = ROOT / "src/perceptune"
    folders = {entry.name for base in (ROOT, package) for entry in base.iterdir() if entry.is_dir()}
    for path in re.findall(r"`([\w./-]+)`", page.read_text(encoding="utf-8")):
        is_ours = path.split("/")[0] in folders - {"runs", "build", "site"} and "NAME" not in path
        if is_ours and re.search(r"\.(py|toml|txt)$|/$", path):
            yield path


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in DATED], ids=lambda page: page.name)
def test_files_named_by_a_page_are_there(page: Path) -> None:
    for path in named_files(page):
        assert (ROOT / path).exists() or (ROOT / "src/perceptune" / path).exists(), f"{page.name}: {path}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_a_page_lead_to_its_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([\w./]*\.md)?#([\w-]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in headings(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


def test_architecture_names_every_package() -> None:
    rows = rows_of("docs/architecture.md")
    packages = {path.name for path in (ROOT / "src/perceptune").iterdir() if (path / "__init__.py").is_file()}
    assert packages <= {row[0].strip("`") for row in rows}


def test_no_page_or_module_uses_a_name_of_the_old_api() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(page for page in PAGES if page.name not in DATED)]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    found = [f"{name}: {match[0]}" for name, text in (texts | helps()).items() for match in OLD_NAMES.finditer(text)]
    assert found == []


def helps() -> dict[str, str]:
    """What `--help` prints of every command."""

    def below(command: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
        yield name, command.format_help()
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                for part, inside in action.choices.items():
                    yield from below(inside, f"{name} {part}")

    return dict(below(parser(), "perceptune"))


def docstrings(file: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield the definitions of a module that have a docstring, with it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node, text


@pytest.mark.parametrize("part", PLAIN)
def test_docstrings_are_plain(part: str) -> None:
    root = ROOT / "src/perceptune" / part
    found = []
    for file in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
        for node, text in docstrings(file):
            is_property = "property" in "".join(map(ast.dump, getattr(node, "decorator_list", ())))
            begins_wrong = isinstance(node, ast.FunctionDef) and not is_property and NO_VERB.match(text)
            if begins_wrong or PHRASES.search(text):
                found.append(f"{file.name}: {text.splitlines()[0]}")
    assert found == []
