"""A report as Markdown: the same sections, with drawings and images replaced by their descriptions."""

import re
from collections.abc import Sequence

from perceptune.tools.report.blocks import Block, Chart, Code, Grid, Report, Shot, Table, Words, verdict
from perceptune.utils.markdown import escape_markdown, markdown_table


def markdown(report: Report) -> str:
    """Return the whole file."""
    parts = [f"# {escape_markdown(report.title)}"]
    for section in report.sections:
        parts.append(f"{'#' * section.level} {escape_markdown(section.title)}")
        parts += map(_block, section.blocks)
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Words():
            return f"{'**Note:** ' if block.tone == 'bad' else ''}{escape_markdown(block.text)}"
        case Table():
            return f"{escape_markdown(block.caption)}\n\n{_table(block.heading, block.rows)}"
        case Code():
            longest = max((len(ticks) for ticks in re.findall("`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}bash\n{block.text}\n{fence}"
        case Chart():
            return f"*Drawing:* {escape_markdown(block.alt)}."
        case Grid():
            names = [one.by or "answer" for one in block.shots[0].answers]
            heading = ("media", "question", *names, "expected", "with other media")
            return f"{escape_markdown(block.caption)}\n\n{_table(heading, [_cells(shot) for shot in block.shots])}"


def _cells(shot: Shot) -> list[str]:
    media = "; ".join(alt for _, alt in shot.images)
    told = "; ".join(part for part in (media, shot.lacking) if part)
    said = [" ".join(part for part in (verdict(one.right), one.answer, one.score) if part) for one in shot.answers]
    return [told, " / ".join([*shot.history, shot.question]), *said, shot.truth, shot.blind or ""]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *others = ([escape_markdown(cell) for cell in row] for row in (heading, *rows))
    return "\n".join(markdown_table(first, others))
