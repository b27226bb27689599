"""The page's routes without a browser: which need no key, what they tell of a run, which rows are shown."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import perceptune
import runs as dwarf_runs
from perceptune.data.build_task import make_task
from perceptune.errors import UserError
from perceptune.models.run_folder import save_run
from perceptune.serving.examples import MOST, load_examples
from perceptune.serving.limits import Limits
from perceptune.serving.runs import Runs
from perceptune.serving.web_page import FOLDER, page_files, shown
from perceptune.tools.summary import summarize
from servers import Served, load_runs, png, served

METHOD = {"name": "epalm", "n_levels": 2, "standardize": False}


@pytest.fixture(scope="module")
def loaded(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("front")
    save_run(place / "one", perceptune.build(dwarf_runs.recipe(dwarfs, method=METHOD)))
    save_run(place / "two", perceptune.build(dwarf_runs.recipe(dwarfs, method={**METHOD, "name": "epalm-lin"})))
    return load_runs([str(place / "one"), f"a/b={place / 'two'}"], Limits())


@pytest.fixture(scope="module")
def server(loaded: Runs) -> Iterator[Served]:
    with served(loaded, examples=partial(load_examples, number=5, limits=Limits())) as running:
        yield running


def fetched(server: Served, path: str) -> tuple[int, dict[str, str], bytes]:
    """Without a key, the path as it is."""
    return server.headers("GET", path, key=None)


def test_the_page_needs_no_key_and_nothing_else_is_open(server: Served) -> None:
    for route, file in page_files().items():
        name = "index.html" if route == "/" else route.removeprefix("/")
        status, headers, data = fetched(server, route)
        assert (status, data) == (200, (FOLDER / name).read_bytes())
        assert headers["content-type"] == file.kind
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert not {"script-src", "style-src", "connect-src"} & {*policy}  # as narrow as the default
        assert "unsafe" not in headers["content-security-policy"]
    paths = [
        *("/v1/models", "/v1/runs/one", "/v1/examples/one", "/metrics", "/version", "/docs", "/openapi.json"),
        *("/index.html", "//", "//page.js", "/page.js/", "/PAGE.JS", "/page.js%2f..%2f..%2fapp.py", "/base.css/../api"),
        *("/../app.py", "/%2e%2e/app.py", "/page.js%00", "/./page.js", "/nothing"),
    ]
    for path in paths:
        assert fetched(server, path)[0] == 401, path
    assert fetched(server, "/page.js?x=/v1/models")[2] == (FOLDER / "page.js").read_bytes()


def test_only_what_is_read_is_open(server: Served) -> None:
    """An open route answers to nothing that could change anything."""
    for method in ("POST", "PUT", "DELETE"):
        assert server.text(method, "/", key=None)[0] == 405


def test_files_of_the_page_name_nothing_elsewhere() -> None:
    for route, file in page_files().items():
        text = file.data.decode()
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), route
        for forbidden in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "onclick="):
            assert forbidden not in text, route


def test_files_of_the_page_are_all_asked_for() -> None:
    """No module or sheet is left over, and none is named that is not there."""
    files = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}
    named = {name for text in files.values() for name in re.findall(r'"(?:\./)?([\w-]+\.(?:js|css|svg))"', text)}
    assert named == {*files} - {"index.html"}


def test_a_run_is_described(server: Served, loaded: Runs) -> None:
    status, told = server.request("GET", "/v1/runs/one")
    assert status == 200
    expected = summarize(loaded["one"].model.recipe)
    assert told["trained"] == expected["trainable"]
    assert told["share"] == pytest.approx(expected["share"])
    assert (told["lm"], told["encoders"]) == ("lm", {"image": "encoder"})  # not where they lie on this machine
    assert told["inputs"]["media"] == {"image": {"layers": 4, "enters": {"2": 2, "3": 3}}}
    assert told["inputs"]["prompt"] == {"layers": [0], "vectors": 10}  # the recipe says `prompt_at: input`
    assert (told["asks"], told["takes_history"], told["max_media"]) == (True, False, {"image": 1})
    assert told["limits"]["bytes"]["image"] == Limits().bytes_of("image")
    assert str(Path(loaded["one"].model.recipe.lm.id).parent) not in json.dumps(told)
    status, told = server.request("GET", "/v1/runs/a%2Fb")
    assert (status, told["id"], told["inputs"]["prompt"]["layers"]) == (200, "a/b", [])
    status, told = server.request("GET", "/v1/runs/onee")
    assert (status, "did you mean `one`" in told["error"]["message"]) == (404, True)


def test_names_are_shown_without_their_folders() -> None:
    assert shown("default", "small") == "small"
    assert shown("facebook/opt-125m", "small") == shown("/data/x/opt-125m/", "") == shown("C:\\x\\opt-125m", "")


def test_examples_are_rows_of_the_evaluated_split(server: Served, loaded: Runs) -> None:
    task = make_task(loaded["one"].model.recipe)
    rows = {sample.media["image"].read_bytes(): sample for sample in task.samples("validation")}  # type: ignore[union-attr]
    told = server.request("GET", "/v1/examples/one")[1]["data"]
    assert len(told) == 5
    for row in told:
        head, _, data = row["media"]["image"].partition(",")
        sample = rows[base64.b64decode(data)]
        assert head == "data:image/png;base64"
        assert (row["prompt"], tuple(row["targets"])) == (sample.prompt, sample.targets)
    assert len({row["targets"][0] for row in told[:4]}) == 4  # before any answer comes again
    assert server.request("GET", "/v1/examples/a%2Fb")[0] == 200


def test_without_the_flag_no_row_leaves(loaded: Runs) -> None:
    assert load_examples(loaded, 0, Limits()) == {}
    with served(loaded) as server:
        assert server.request("GET", "/v1/examples/one")[1]["data"] == []
        assert server.request("GET", "/v1/runs/one")[1]["examples"] == 0


def test_rows_that_cannot_be_shown_are_left_out(dwarfs: Path, tmp_path: Path) -> None:
    rows = []
    for number, data in enumerate((png(), b"\0" * (3 * 2**20), None)):
        if data is not None:
            (tmp_path / f"{number}.png").write_bytes(data)
        rows.append({"image": f"{number}.png", "prompt": "color?", "targets": [str(number)]})
    (tmp_path / "2.png").write_bytes(png())
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {"name": "jsonl", "train": str(data), "validation": str(data)}
    save_run(tmp_path / "run", perceptune.build(dwarf_runs.recipe(dwarfs, method=METHOD, task=task)))
    (tmp_path / "2.png").unlink()
    runs = load_runs([str(tmp_path / "run")], Limits())
    with pytest.raises(UserError, match="leave out --examples"):  # the task itself misses a file
        load_examples(runs, 3, Limits())
    (tmp_path / "2.png").write_bytes(png("blue"))
    assert [one.targets for one in load_examples(runs, 3, Limits())["run"]] == [("0",), ("2",)]
    with pytest.raises(UserError, match="no example can be shown"):
        load_examples(runs, 3, Limits(image_mb=0.00001))
    data.unlink()
    with pytest.raises(UserError, match="`run`: no examples"):
        load_examples(runs, 3, Limits())
    with pytest.raises(UserError, match=f"0 to {MOST}"):
        load_examples(runs, MOST + 1, Limits())
