"""A report as one HTML file: no script, nothing loaded from elsewhere, every text escaped, light and dark."""

from __future__ import annotations

import re
from html import escape

from perceptune.tools.report import blocks
from perceptune.tools.report.blocks import Block, Chart, Code, Grid, Report, Section, Shot, Table, Words, verdict

# Images come from the file itself; a browser is told to load nothing else, whatever a text might smuggle in.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LIGHT = ("#0b62b0", "#b35000", "#1a7f4b", "#8250df", "#c4342d", "#9a6700", "#0e7490", "#bf3989")
_DARK = ("#6cb6ff", "#f0a35e", "#57c98a", "#c8a2ff", "#ff8f87", "#e3c04f", "#56d4e8", "#ff9bce")
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --rule: #d8dee4; --paper: #ffffff;
--soft: #f6f8fa; --good: #1a7f4b; --bad: #c4342d; %s }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9da7b3; --rule: #3d444d; --paper: #0d1117;
--soft: #161b22; --good: #57c98a; --bad: #ff8f87; %s } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2em auto;
max-width: 72em; padding: 0 1em; overflow-wrap: anywhere } a { color: var(--s0) }
nav ul { padding: 0; display: flex; flex-wrap: wrap; gap: .2em 1.2em; list-style: none } .bad { color: var(--bad) }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5em 0 1.5em }
caption { text-align: left; color: var(--faint); padding-bottom: .3em }
td, th { padding: .25em .9em .25em 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule);
font-variant-numeric: tabular-nums; overflow-wrap: normal }
.n { white-space: nowrap } .long { min-width: 16em } th[scope=row] { font-weight: 600; min-width: 6em }
pre { background: var(--soft); padding: .8em 1em; overflow-x: auto; border: 1px solid var(--rule) }
figure { margin: 0 } figure.narrow { display: none }
svg { width: 100%%; max-width: 860px; height: auto; margin: .5em 0 1.5em }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink) } svg .faint { fill: var(--faint) }
svg polyline { fill: none; stroke-width: 2 } svg .axis { stroke: var(--faint); stroke-width: 1 }
svg .rule { stroke: var(--rule); stroke-width: 1 } svg .span { stroke: var(--s0); opacity: .5 }
svg rect { opacity: .75 } svg .whisker { stroke: var(--ink); stroke-width: 1 }
svg .blind { stroke: var(--ink); stroke-width: 3 } svg .raw { stroke-width: 1; opacity: .35 }
svg .dashed { stroke-dasharray: 6 4 } %s
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1em; padding: 0;
list-style: none } .shots li { border: 1px solid var(--rule); padding: .6em; background: var(--soft) }
.media { display: flex; gap: 4px } .media img { flex: 1; min-width: 0; max-width: 100%%; object-fit: contain }
.shots p { margin: .35em 0 0 } .asked { font-weight: 600 } .right, .truth { color: var(--good) }
.wrong { color: var(--bad) } .small { color: var(--faint) } summary { cursor: pointer } summary h3 { display: inline }
details { margin: .8em 0 } @media (max-width: 600px) { body { margin: 1em auto }
figure { display: none } figure.narrow { display: block }
.shots { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: .6em } }
"""


def html(report: Report) -> str:
    """The whole file."""
    title = escape(report.title)
    links = "".join(
        f'<li><a href="#s{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(report.sections)
        if section.level == 2
    )
    body = "".join(_section(number, section) for number, section in enumerate(report.sections))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_style()}</style>"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><header><h1>{title}</h1></header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}</main></body></html>\n'
    )


def _style() -> str:
    light, dark = (" ".join(f"--s{i}: {colour};" for i, colour in enumerate(one)) for one in (_LIGHT, _DARK))
    series = " ".join(
        f"svg polyline.s{i} {{ stroke: var(--s{i}) }} svg circle.s{i}, svg rect.s{i} {{ fill: var(--s{i}) }}"
        for i in range(len(_LIGHT))
    )
    return _STYLE % (light, dark, series)


def _section(number: int, section: Section) -> str:
    name = f"h{section.level}"
    heading = f"<{name}>{escape(section.title)}</{name}>"
    blocks = "\n".join(map(_block, section.blocks))
    if section.folded:
        return f'<section id="s{number}"><details><summary>{heading}</summary>\n{blocks}</details></section>\n'
    return f'<section id="s{number}">{heading}\n{blocks}</section>\n'


def _block(block: Block) -> str:
    match block:
        case Words():
            mark = ' class="bad"' if block.tone == "bad" else ""
            return f"<p{mark}>{_coded(block.text)}</p>"
        case Table():
            return _table(block)
        case Code():
            return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'
        case Chart():
            return f'<figure>{block.svg}</figure><figure class="narrow">{block.narrow}</figure>'
        case Grid():
            shots = "".join(map(_shot, block.shots))
            return f'<p class="small">{escape(block.caption)}</p><ul class="shots">{shots}</ul>'


def _coded(text: str) -> str:
    """A paragraph's text, what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _table(table: Table) -> str:
    heading = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.heading)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>' for row in table.rows
    )
    caption = f"<caption>{_coded(table.caption)}</caption>"
    inner = f"<table>{caption}<thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0">{inner}</div>'


def _cell(text: str) -> str:
    """What is short stays on one line, however narrow the page is; a table that is too wide can be scrolled."""
    return f'<td class="{"n" if len(text) <= 40 else "long"}">{escape(text)}</td>'


def _shot(shot: Shot) -> str:
    images = "".join(f'<img src="{escape(uri)}" alt="{escape(alt)}">' for uri, alt in shot.images)
    media = f'<div class="media">{images}</div>' if images else ""
    lacking = f'<p class="bad">{escape(shot.lacking)}</p>' if shot.lacking else ""
    said = "".join(map(_said, shot.answers))
    truth = f'<p class="truth">expected: {escape(shot.truth or "(nothing)")}</p>' if shot.truth_tells else ""
    blind = (
        "" if shot.blind is None else f'<p class="small">with other media: {escape(shot.blind or "(no answer)")}</p>'
    )
    return f'<li>{media}{lacking}<p class="asked">{escape(shot.question)}</p>{said}{truth}{blind}</li>'


def _said(one: blocks.GivenAnswer) -> str:
    mark = {True: "right", False: "wrong", None: "said"}[one.right]
    by = f'<span class="small">{escape(one.by)}</span> ' if one.by else ""
    score = f' <span class="small">{escape(one.score)}</span>' if one.score else ""
    strong = f"<strong>{verdict(one.right)}</strong> " if one.right is not None else ""
    return f'<p class="{mark}">{by}{strong}{escape(one.answer or "(no answer)")}{score}</p>'
