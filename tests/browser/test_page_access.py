"""Whether everybody can use the page: axe's rules on every state of it, small screens, colours, motion."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

import chromium
from perceptune.serving.runs import Runs
from servers import png, served

AXE = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def problems(page: Any) -> list[str]:
    """What axe finds of WCAG 2.1 A and AA and of its own best practices; contrasts that it cannot tell, too."""
    page.js("for (const one of document.querySelectorAll('details')) one.open = true")
    page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE})  # past the page's policy
    found = page.driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run({ exclude: [['figure svg']] }, { resultTypes: ['violations', 'incomplete'] }).then(done)"
    )
    assert found["passes"]
    told = found["violations"] + [one for one in found["incomplete"] if one["id"] == "color-contrast"]
    return [f"{one['id']}: {[node['html'][:200] for node in one['nodes']]}" for one in told]


def fill(page: Any) -> None:
    """The page with all that it can show: two runs, a picture, answers, a refusal, open details."""
    page.js("const o = document.getElementById('other'); o.value = 'two'; o.dispatchEvent(new Event('change'))")
    page.drop(png("teal"), "teal.png", "image/png")
    page.until(lambda: page.shown(".tile"))
    page.one("#question").send_keys("Which of these is Donaudampfschifffahrtsgesellschaftskapitaen?", Keys.ENTER)
    page.answered()
    page.drop(b"?", "notes.txt", "text/plain")
    page.drop(b"\x89PNG", "broken.png", "image/png")
    page.until(lambda: "broken" in page.one(".tile").text)
    page.one("#question").send_keys(Keys.ENTER)
    page.answered(2)
    assert page.shown(".refusal")
    page.until(lambda: page.shown(".example"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Any, scheme: str) -> None:
    chromium.resize(page, 1200, 900, scheme=scheme, motion="reduce")
    assert problems(page) == []
    fill(page)
    assert problems(page) == []
    page.one("#camera-open").click()
    page.until(lambda: page.shown("#camera"))
    assert problems(page) == []
    chromium.resize(page, 320, 900, scheme=scheme, motion="reduce")
    assert problems(page) == []


def test_axe_finds_nothing_where_a_key_is_asked_for(window: Any, loaded: Runs) -> None:
    with served(loaded) as server:
        page = window.open(server.base)
        page.one("#key").send_keys("wrong", Keys.ENTER)
        page.until(lambda: page.shown("#trouble"))
        assert problems(page) == []


def test_axe_would_find_something(page: Any) -> None:
    page.js("document.querySelector('label[for=question]').remove()")
    page.js(
        "document.getElementById('invitation').className = 'unseen'; document.getElementById('go').textContent = ''"
    )
    found = "\n".join(problems(page))
    assert "label" in found
    assert "button-name" in found


def test_nothing_is_cut_off_or_pushed_aside_at_320_pixels(page: Any) -> None:
    chromium.resize(page, 320, 640)
    fill(page)
    page.js("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.js("return [innerWidth, document.documentElement.scrollWidth]") == [320, 320]
    beyond = page.js(
        "return [...document.querySelectorAll('main *')].filter((one) => {"
        "  const box = one.getBoundingClientRect();"
        "  return box.width > 1 && (box.right > 320.5 || box.left < -0.5);"
        "}).map((one) => one.outerHTML.slice(0, 100))"
    )
    assert beyond == []
    small = [one.rect for one in page.all("button, select, summary, label.button") if one.is_displayed()]
    assert min(box["height"] for box in small) >= 20
    assert page.js("return document.querySelector('figure svg').classList.contains('down')")


def test_motion_is_left_out_for_those_who_do_not_want_it(page: Any, slow: None) -> None:
    look = "return getComputedStyle(document.querySelector('.live .text'), '::after').animationName"
    page.one("#question").send_keys("color?", Keys.ENTER)
    page.until(lambda: page.all(".answer.live"))
    assert page.js(look) == "blink"
    chromium.resize(page, 1200, 900, motion="reduce")
    assert page.js(look) == "none"
    page.answered()


def test_drawings_have_contrast(page: Any) -> None:
    """Of text and of shapes that mean something, which axe does not look at inside a drawing."""
    for scheme in ("light", "dark"):
        chromium.resize(page, 1200, 900, scheme=scheme)
        card = style(page, "#insides > article", "backgroundColor")
        assert contrast(style(page, "svg .caption", "fill"), card) >= 4.5
        assert contrast(style(page, "svg .number:not(.on)", "fill"), card) >= 4.5
        assert contrast(style(page, "svg .on", "fill"), style(page, "svg .used", "fill")) >= 4.5
        assert contrast(style(page, "svg .used", "fill"), card) >= 3
        assert contrast(style(page, "svg .bare", "stroke"), card) >= 3
        for control in ("#question", "#run", "#stop", "#drop"):
            assert contrast(style(page, control, "borderTopColor"), card) >= 3


def style(page: Any, css: str, name: str) -> list[float]:
    """Red, green and blue."""
    color = page.js("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", css, name)
    return [float(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")]


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG's ratio."""

    def luminance(color: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
