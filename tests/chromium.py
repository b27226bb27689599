"""Headless Chromium on a served page, driven by keys and clicks as a person would."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

Result = TypeVar("Result")
MISSING = "" if shutil.which("chromium") and shutil.which("chromedriver") else "needs Chromium: run `make browser`"
_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--force-color-profile=srgb",
    "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
)  # fmt: skip


class Page:
    """The page in a browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._requested: list[str] = []

    def open(self, address: str) -> Page:
        """Loads it, and waits until it has found its runs or asks for a key."""
        self.requested(), self.complaints()
        self._requested = []
        self.driver.get(address)
        self.until(lambda: self.shown("#ask") or self.shown("#lock") or self.shown("#trouble"))
        return self

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def shown(self, css: str) -> bool:
        return any(one.is_displayed() for one in self.all(css))

    def texts(self, css: str) -> list[str]:
        return [str(one.get_property("textContent")) for one in self.all(css)]

    def js(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def until(self, found: Callable[[], Result], seconds: float = 20) -> Result:
        """What `found` returns as soon as that is something."""
        end = time.monotonic() + seconds
        while not (result := found()):
            if time.monotonic() > end:
                raise AssertionError(f"waited in vain; the page says: {self.one('body').text[:800]}")
            time.sleep(0.02)
        return result

    def answered(self, exchange: int = 1) -> list[str]:
        """The newest answers, when all of them have ended; `exchange` is how many there are by then."""
        self.until(lambda: len(self.all(".exchange")) == exchange and not self.all(".answer.live"))
        return self.texts(".exchange:first-child .answer .text")

    def drop(self, data: bytes, name: str, kind: str, event: str = "drop") -> None:
        """Drops a file onto the page, or pastes it."""
        self.js(
            """
            const [bytes, name, type, kind] = arguments;
            const given = new DataTransfer();
            given.items.add(new File([new Uint8Array(bytes)], name, { type }));
            const init = { bubbles: true, cancelable: true };
            document.getElementById("drop").dispatchEvent(kind === "drop"
              ? new DragEvent("drop", { ...init, dataTransfer: given })
              : new ClipboardEvent("paste", { ...init, clipboardData: given }));
            """,
            list(data), name, kind, event,
        )  # fmt: skip

    def complaints(self) -> list[str]:
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Addresses of everything that was asked for since `open`."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requested.append(message["params"]["request"]["url"])
        return self._requested


@contextmanager
def browser(
    *, width: int = 1200, height: int = 900, media: str = "allow", folder: Path | None = None, scale: float = 1
) -> Iterator[Page]:
    """A browser of its own profile. `media`: what it answers to a page that wants the camera (allow, deny)."""
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    if media == "allow":
        options.add_argument("--use-fake-ui-for-media-stream")
    else:
        answer = {"profile.default_content_setting_values": {"media_stream_camera": 2, "media_stream_mic": 2}}
        options.add_experimental_option("prefs", answer)
    options.add_argument(f"--window-size={width},{height}")
    options.add_argument(f"--force-device-scale-factor={scale}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(shutil.which("chromedriver"))))
    try:
        yield Page(driver)
    finally:
        driver.quit()


def resize(page: Page, width: int, height: int = 800, *, scheme: str = "light", motion: str = "no-preference") -> None:
    """A viewport of that many pixels, which a window may not be small enough for, and what the user prefers."""
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 0, "mobile": False},
    )
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme},
                      {"name": "prefers-reduced-motion", "value": motion}]},
    )  # fmt: skip
    # Laid out and painted anew: what is looked at next is not what stood there before.
    page.driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50)))"
    )
