"""A report in a real browser: nothing is asked of elsewhere, nothing sticks out, no label covers another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perceptune
import runs
from perceptune.cli.main import run as cli

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
NARROW, WIDE = 400, 1280  # pixels
# Texts of each drawing with their boxes in its own units, and the drawing's own width and height.
DRAWINGS = """
return [...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length).map(svg => ({
  size: [svg.viewBox.baseVal.width, svg.viewBox.baseVal.height],
  texts: [...svg.querySelectorAll('text')].map(text => {
    const box = text.getBBox();
    return [text.textContent, box.x, box.y, box.x + box.width, box.y + box.height];
  })
}));
"""


@pytest.fixture(scope="module")
def page(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs with long names, one of them with its control."""
    folder = tmp_path_factory.mktemp("seen")
    long = "a-run-whose-name-is-longer-than-a-phone-is-wide-and-has-no-blank-to-break-it"
    for name, steps in (("first", 30), (long, 2)):
        given = runs.recipe(dwarfs, eval={"every": max(1, steps // 3)})
        given["train"] |= {"steps": steps}
        perceptune.train(given, folder / name)
        perceptune.evaluate(folder / name, control=name == "first")
    assert cli(["report", str(folder / "first"), str(folder / long)]) == 0
    return folder / "first/report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    """The page, as wide as a screen, all its folded parts open."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")


def test_it_asks_nothing_of_elsewhere_and_has_no_errors(browser: Any, page: Path) -> None:
    opened(browser, page, WIDE)
    events = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_sticks_out(browser: Any, page: Path, width: int) -> None:
    opened(browser, page, width)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_every_picture_is_shown_and_described(browser: Any, page: Path) -> None:
    opened(browser, page, WIDE)
    pictures = browser.execute_script("return [...document.images].map(one => [one.naturalWidth, one.alt])")
    assert len(pictures) >= 10
    assert all(width > 0 and text for width, text in pictures)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_labels_stay_inside_their_drawing_and_off_one_another(browser: Any, page: Path, width: int) -> None:
    opened(browser, page, width)
    drawings = browser.execute_script(DRAWINGS)
    assert len(drawings) == 4, "bars, trade-off, loss, accuracy while training: those for this width alone"
    for drawing in drawings:
        own_width, height = drawing["size"]
        assert own_width <= 1.1 * width, "letters keep their size"
        texts = drawing["texts"]
        for text, left, top, right, bottom in texts:
            assert left >= 0 <= top, text
            assert right <= own_width, text
            assert bottom <= height, text
        for number, (text, *a) in enumerate(texts):
            for other, *b in texts[:number]:
                apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 3 or b[3] <= a[1] + 3
                assert apart, (text, other)


def test_letters_stand_out_in_light_and_dark(browser: Any, page: Path) -> None:
    """Of the ink on its paper, by WCAG's formula: 7 to 1."""
    for scheme in ("light", "dark"):
        opened(browser, page, NARROW, scheme)
        ink, paper = browser.execute_script(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        )
        assert contrast(ink, paper) > 7, scheme


def contrast(a: str, b: str) -> float:
    low, high = sorted(map(luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`."""
    shares = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
