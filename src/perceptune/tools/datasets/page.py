"""A checked data set as a web page of its own: no script, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from perceptune.data.media.audio import read_audio
from perceptune.data.media.source import open_image
from perceptune.data.records import short
from perceptune.errors import UserError
from perceptune.tools.datasets.validate import Checked
from perceptune.tools.plots.figures import INK
from perceptune.types import Medium, Sample

_SIDE = 160  # pixels of a thumbnail
_HEARD = 30.0  # seconds of an audio file that are drawn
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2328; margin: 2em auto; max-width: 70em; padding: 0 1em }
table { border-collapse: collapse; margin: .5em 0 } td, th { padding: .2em .8em .2em 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #d8dee4 } .bad { color: #c4342d } .good { color: #1a7f4b }
.samples { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0; width: 170px; overflow-wrap: anywhere }
img { max-width: 160px; background: #f6f8fa } small { color: #59636e }
"""


def page(checked: Checked) -> str:
    """The HTML of a report, with small images of the rows that were drawn."""
    report = checked.report
    parts = [f"<h1>{escape(report['source'])}</h1>", _problems(report["problems"])]
    for split, found in report["splits"].items():
        parts += [f"<h2>{escape(split)}: {found['rows']:,} rows</h2>", _facts(found)]
        parts.append(f'<div class="samples">{"".join(map(_figure, checked.samples[split]))}</div>')
    head = f'<meta charset="utf-8"><title>{escape(report["source"])}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def thumbnail(modality: str, medium: Medium) -> Image.Image:
    """At most 160 x 160 pixels: the image, a video's middle frame, an audio file's envelope. Raises `UserError`."""
    if modality == "audio":
        return _envelope(medium)
    if modality == "video":
        from perceptune.data.media.video import read_frames

        image = next(read_frames(medium, 1))
    else:
        image = open_image(medium)
    image.thumbnail((_SIDE, _SIDE))
    return image


def _problems(problems: dict[str, Any]) -> str:
    if not problems:
        return '<p class="good">No mistakes found.</p>'
    rows = [
        (f"{kind}<br><small>{escape(found['what'])}</small>", f"{found['count']:,}",
         "<br>".join(escape(short(message, 400)) for message in found["first"]))
        for kind, found in problems.items()
    ]  # fmt: skip
    return f'<h2 class="bad">Mistakes</h2>{_table(rows)}'


def _facts(found: dict[str, Any]) -> str:
    rows = [(escape(name), escape(_spread(spread))) for name, spread in found["lengths"].items()]
    for modality, media in found["media"].items():
        rows.append((escape(modality), f"{media['distinct']:,} distinct in {media['rows']:,} rows"))
        rows += [
            (f"{escape(modality)} {name}", escape(_spread(value)))
            for name, value in media.items()
            if isinstance(value, dict)
        ]
    answers = found["answers"]
    rows.append(("distinct answers", f"{answers['distinct']:,}"))
    shares = [(escape(short(one["answer"])), f"{one['count']:,}", f"{one['share']:.1%}")
              for one in answers["most_frequent"]]  # fmt: skip
    return _table(rows) + (f"<h3>Most frequent answers</h3>{_table(shares)}" if shares else "")


def _spread(spread: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.6g}" for name, value in spread.items())


def _table(rows: Iterable[Sequence[str]]) -> str:
    """The cells are HTML already."""
    return f"<table>{''.join('<tr>' + ''.join(f'<td>{cell}</td>' for cell in row) + '</tr>' for row in rows)}</table>"


def _figure(sample: Sample) -> str:
    images = "".join(_image(modality, medium) for modality, medium in sample.media.items())
    prompt = f"{escape(short(sample.prompt))}<br>" if sample.prompt else ""
    answers = escape(short("; ".join(sample.targets)))
    words = f"{prompt}<b>{answers}</b><br><small>{escape(short(sample.id))}</small>"
    return f"<figure>{images}<figcaption>{words}</figcaption></figure>"


def _image(modality: str, medium: Medium) -> str:
    try:
        small = thumbnail(modality, medium)
    except UserError as error:
        return f'<p class="bad">{escape(short(str(error)))}</p>'
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return f'<img alt="{escape(modality)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _envelope(medium: Medium) -> Image.Image:
    """Loudness over time."""
    wave = np.abs(read_audio(medium, 8_000, _HEARD))
    peaks = [part.max() for part in np.array_split(wave, _SIDE) if part.size]
    image = Image.new("RGB", (len(peaks), _SIDE // 2), "white")
    draw, middle = ImageDraw.Draw(image), _SIDE // 4
    for x, peak in enumerate(peaks):
        height = round(float(peak) / float(wave.max()) * (middle - 2))
        draw.line([(x, middle - height), (x, middle + height)], fill=INK)
    return image
