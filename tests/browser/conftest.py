"""A served page in a browser. Every test ends with a look at what the browser asked for, and what it complains of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import chromium
import perceptune
import runs as dwarf_runs
from perceptune.models.run_folder import save_run
from perceptune.serving.examples import load_examples
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from servers import Served, load_runs, served

EXAMPLES = 3


@pytest.fixture(scope="session")
def loaded(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two runs that see, and one that sees, hears and watches. What the first one says depends on the picture."""
    place = tmp_path_factory.mktemp("page")
    senses = {name: {"id": str(dwarfs / "encoder")} for name in ("image", "audio", "video")}
    runs: dict[str, dict[str, Any]] = {
        "one": {"method": {"name": "limber", "connector_std": 2.0, "standardize": False}},
        "two": {"method": {"name": "epalm", "n_levels": 2, "standardize": False}},
        "senses": {"method": {"name": "epalm", "n_levels": 2, "standardize": False}, "encoders": senses},
    }
    for name, changes in runs.items():
        save_run(place / name, perceptune.build(dwarf_runs.recipe(dwarfs, **changes)))
    return load_runs([str(place / name) for name in runs], Limits())


@pytest.fixture(scope="session")
def server(loaded: Runs) -> Iterator[Served]:
    """Without a key, with examples."""
    with served(loaded, key=None, examples=partial(load_examples, number=EXAMPLES, limits=Limits())) as running:
        yield running


@pytest.fixture(scope="session")
def window() -> Iterator[Any]:
    if chromium.MISSING:
        pytest.skip(chromium.MISSING)
    with chromium.browser() as page:
        yield page


@pytest.fixture
def page(window: Any, server: Served) -> Iterator[Any]:
    """The page of `server`, opened anew."""
    chromium.resize(window, 1200, 900)
    yield window.open(server.base)
    require_quiet(window)
    window.js("sessionStorage.clear()")


def require_quiet(page: Any) -> None:
    """Nothing came from, or went to, another host; no script failed and no policy was broken."""
    own = page.js("return location.origin")
    requested = page.requested()
    assert requested
    assert [one for one in requested if not one.startswith((f"{own}/", "data:"))] == []
    # The browser notes every refused request; the page is to show those, and the tests look whether it does.
    assert [one for one in page.complaints() if "responded with a status of" not in one] == []


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token takes a while, and no answer ends by itself."""
    from perceptune.lm.generation.decode_state import DecodeState
    from perceptune.lm.generation.generate import GeneratedSequence

    feed, take = DecodeState.decode_step, GeneratedSequence.append

    def slowly(self: DecodeState, tokens: Any) -> Any:
        time.sleep(0.03)
        return feed(self, tokens)

    monkeypatch.setattr(DecodeState, "decode_step", slowly)
    monkeypatch.setattr(GeneratedSequence, "append", lambda self, token: take(self, 5 if token == self.eos else token))
