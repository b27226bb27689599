"""The pictures of the page in docs/, taken anew:

    python tests/browser/screenshots.py runs/demo again=runs/other

Serves the runs with examples, asks in a real browser, and writes docs/page*.png. Needs Chromium (`make browser`).
"""

from __future__ import annotations

import base64
import io
import sys
from functools import partial
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import Page, browser, resize
from perceptune.serving.examples import load_examples
from perceptune.serving.limits import Limits
from servers import load_runs, served

DOCS = Path(__file__).parents[2] / "docs"
COLOURS = 128  # of a picture's palette: the page has few


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    limits = Limits()
    runs = load_runs(sys.argv[1:], limits)
    examples = partial(load_examples, number=12, limits=limits)
    with served(runs, limits, key=None, examples=examples) as server, browser(scale=1.5) as page:
        resize(page, 1120, 900, motion="reduce")
        page.open(server.base)
        page.until(lambda: len(page.all(".example")) == 12)
        click(page, 3)
        shoot(page, "page.png", "#exchanges")
        choose(page, list(runs)[1])
        click(page, 10, 2)
        shoot(page, "page-two-runs.png", "#exchanges > li:first-child", top="#ask")
        resize(page, 1120, 900, scheme="dark", motion="reduce")
        shoot(page, "page-dark.png", "#insides > article:first-child", top="#shown")
        resize(page, 320, 900, motion="reduce")
        choose(page, "")
        shoot(page, "page-narrow.png", "#exchanges > li:first-child")
    return 0


def click(page: Page, number: int, exchange: int = 1) -> None:
    page.all(".example")[number].click()
    page.answered(exchange)


def choose(page: Page, name: str) -> None:
    page.js(
        "const one = document.getElementById('other'); one.value = arguments[0];one.dispatchEvent(new Event('change'))",
        name,
    )


def shoot(page: Page, name: str, last: str, top: str = "body") -> None:
    """From the top of one element to the end of another, in few colours."""
    page.js("document.activeElement.blur(); scrollTo(0, 0)")
    whole = page.js(
        "const [a, b] = [...arguments].map((css) => document.querySelector(css).getBoundingClientRect());"
        "return [Math.max(0, a.top - 24), b.bottom + 12, innerWidth]", top, last,
    )  # fmt: skip
    clip = {"x": 0, "y": whole[0], "width": whole[2], "height": whole[1] - whole[0], "scale": 1}
    taken = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    picture = Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(DOCS / name, optimize=True)
    print(f"{name}: {few.width} x {few.height}, {(DOCS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    raise SystemExit(main())
